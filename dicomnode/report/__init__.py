"""What goes back to the hospital: Structured Report and contact sheet, in the study that was asked about.

The only part that joins the identified header of a query with a de-identified answer; it therefore works in the
identified zone, reads and writes no files and logs nothing that identifies a patient.
"""
