"""Results go to the caller where it takes them, else to every peer that does."""

from __future__ import annotations

from dicomnode.workflow.peers import Destination, destinations_for


def peer(name: str, *, results: bool = True, title: str = "") -> Destination:
    return Destination(name, title or name.upper(), "127.0.0.1", 104, results, ("sr",))


PACS, ARCHIVE, MODALITY = peer("pacs"), peer("archive"), peer("modality", results=False)


def test_a_caller_that_takes_results_gets_its_own():
    assert destinations_for("ARCHIVE", [PACS, ARCHIVE, MODALITY]) == [ARCHIVE]


def test_the_results_of_a_caller_that_takes_none_go_to_all_that_do():
    assert destinations_for("MODALITY", [PACS, ARCHIVE, MODALITY]) == [PACS, ARCHIVE]
    assert destinations_for("UNKNOWN", [PACS, ARCHIVE, MODALITY]) == [PACS, ARCHIVE]


def test_two_peers_of_one_title_both_get_it():
    twin = peer("pacs-2", title="PACS")
    assert destinations_for("PACS", [PACS, twin, ARCHIVE]) == [PACS, twin]


def test_where_nobody_takes_results_there_is_no_destination():
    assert destinations_for("MODALITY", [MODALITY]) == []
