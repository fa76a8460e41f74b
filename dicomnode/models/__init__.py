"""Networks, preprocessing, packs and the embedder: from de-identified images to vectors.

Import from the modules: ``embedder.Embedder``, ``study.embed_study``, ``manifest.find_pack``. This file imports
nothing, so that reading a manifest does not load the networks.
"""
