"""What the web side calls, wired from the parts of the node: part of the composition root, beside ``serving``.

``services.WebSide`` is what ``dicomnode.web.app.create_app`` is given. Nothing here loads the networks until somebody
asks why two slices are alike.
"""
