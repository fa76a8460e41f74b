"""dicomnode: answers 'have we seen this before?' on the hospital's DICOM network."""

__version__ = "0.1.0"
