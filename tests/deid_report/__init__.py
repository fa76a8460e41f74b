"""Proof of de-identification: planted identities, and judges that share no code with what they judge.

``python -m tests.deid_report`` writes ``docs/deid-report.md``. Nothing here but ``run.py`` imports dicomnode: what the
engine did is judged from the files alone, the answer key, and the CSV of Table E.1-1.
"""
