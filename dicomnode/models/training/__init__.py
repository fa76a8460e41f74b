"""Training of the shipped networks: data, augmentation, losses, resumable runs, and the building of a pack.

Nothing here runs in the node; ``dicomnode train`` calls ``train_cenet``, ``train_xception`` and ``build_pack``.
"""
