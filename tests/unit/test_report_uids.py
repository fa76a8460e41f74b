"""UIDs of what the node sends: the same for the same answer, different for anything else."""

from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID

from dicomnode.report.codes import COMPREHENSIVE_SR, ENHANCED_SR
from dicomnode.report.uids import Kind, instance_uid, series_uid, subject_uid


@given(st.text(max_size=80), st.sampled_from(Kind), st.text(max_size=40))
def test_every_derived_uid_is_valid_and_stable(study: str, kind: Kind, namespace: str) -> None:
    uid = series_uid(study, kind, namespace=namespace)
    assert UID(uid).is_valid
    assert uid.startswith("2.25.")
    assert uid == series_uid(study, kind, namespace=namespace)


def test_each_kind_has_a_series_of_its_own_in_each_study() -> None:
    uids = {series_uid(study, kind, namespace="n") for study in ("1.2", "1.3") for kind in Kind}
    assert len(uids) == 6
    assert [kind.series_number for kind in Kind] == [9901, 9910, 9912]


def test_the_sop_class_is_part_of_the_instance_uid() -> None:
    assert instance_uid("a", COMPREHENSIVE_SR, namespace="n") != instance_uid("a", ENHANCED_SR, namespace="n")


def test_two_sites_never_share_a_uid() -> None:
    assert instance_uid("a", ENHANCED_SR, namespace="site 1") != instance_uid("a", ENHANCED_SR, namespace="site 2")


def test_parts_cannot_be_shifted_into_each_other() -> None:
    assert instance_uid("ab", "c", namespace="n") != instance_uid("a", "bc", namespace="n")


def test_a_subject_uid_follows_the_pseudonym() -> None:
    assert subject_uid("DN-1") == subject_uid("DN-1") != subject_uid("DN-2")
