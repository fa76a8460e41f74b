"""The parts of ``dicomnode deid`` for a large folder: inputs, journal, layout, reports, explanation of a file."""
