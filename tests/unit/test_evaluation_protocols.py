"""Protocol files: what they select, and the two kinds that read masks and DICOM headers."""

from __future__ import annotations

import numpy as np
import pytest
from evaluation_samples import write_csv
from PIL import Image
from pydicom.dataset import Dataset

from dicomnode.errors import InputError, UsageError
from dicomnode.evaluation.labels import Checks
from dicomnode.evaluation.lesion import CLEAR, INFECTED, lesion_profile
from dicomnode.evaluation.organs import region_of
from dicomnode.evaluation.protocols import find_protocol, names, open_protocol
from dicomnode.models.training.data import HELD_OUT_VOLUMES, LEFT_OUT_VOLUMES


def protocol_file(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return str(path)


LABELS = 'title = "t"\nabout = "a"\nkind = "labels"\n'


class TestFiles:
    def test_the_five_that_are_shipped(self):
        assert names() == ["in-domain", "leaky", "lesion", "organs", "published"]
        for name in names():
            assert find_protocol(name).title

    def test_the_leaky_one_says_so_and_the_others_close_what_leaks(self):
        for name in names():
            protocol = find_protocol(name)
            assert (protocol.rules.close_group and protocol.rules.close_near) == (name != "leaky")
            assert protocol.title.startswith("Leaky") == (name == "leaky")

    def test_lesion_holds_out_what_no_training_reads(self):
        masks = find_protocol("lesion").parts["masks"]
        assert set(masks["held_out_volumes"]) == set(HELD_OUT_VOLUMES)
        assert set(masks["left_out_volumes"]) == set(LEFT_OUT_VOLUMES)

    def test_an_unknown_one_names_those_that_are_there(self):
        with pytest.raises(UsageError, match="in-domain, leaky, lesion, organs, published"):
            find_protocol("best")

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            ("title = ", "TOML"),
            ('title = "t"\nkind = "labels"\n', "'about' is missing"),
            ('title = "t"\nabout = "a"\nkind = "magic"\n', "'magic' is none of"),
            (LABELS + "colour = 1\n", "unknown key 'colour'"),
            (LABELS + "[rules]\nclose_eyes = true\n", "unknown key; known are close_group, close_near"),
        ],
    )
    def test_a_wrong_file_is_one_line_that_names_it(self, tmp_path, text, match):
        with pytest.raises(InputError, match=match) as caught:
            find_protocol(protocol_file(tmp_path, text))
        assert "mine.toml" in str(caught.value)

    def test_a_pack_that_saw_the_test_data_is_named(self):
        published = find_protocol("published")
        assert "COVID-CT (UCSD)" in published.broken_by({"data": [{"name": "COVID-CT (UCSD), official train split"}]})
        assert published.broken_by({"data": [{"name": "SARS-CoV-2 CT-scan"}]}) == ""
        assert published.broken_by({}) == ""


class TestSelection:
    @pytest.fixture
    def data(self, tmp_path):
        rows = [[f"{i}.png", "xy"[i % 2], "train" if i < 6 else "val"] for i in range(10)]
        write_csv(tmp_path / "l.csv", ["path", "label", "split"], rows)
        return tmp_path

    def opened(self, tmp_path, text, data):
        with open_protocol(find_protocol(protocol_file(tmp_path, LABELS + text)), data, Checks()) as both:
            return [[int(r.path.stem) for r in rows] for rows in both], both

    def test_by_column(self, data, tmp_path):
        text = (
            '[index]\nfile = "l.csv"\nwhere = { split = "train" }\n'
            '[queries]\nfile = "l.csv"\nwhere = { split = "val" }\n'
        )
        assert self.opened(tmp_path, text, data)[0] == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9]]

    def test_by_slice_and_by_block(self, data, tmp_path):
        part = 'file = "l.csv"\nblock = 2\nheld_out = [1, 3]\n'
        text = f'[index]\n{part}keep = "out"\n[queries]\n{part}keep = "in"\n'
        found, rows = self.opened(tmp_path, text, data)
        assert found == [[0, 2, 3, 5, 6, 8, 9], [1, 4, 7]]
        assert [r.group for r in rows[1]] == ["block000", "block002", "block003"]
        by_block = text.replace("keep", "split_by_block = true\nkeep")
        assert self.opened(tmp_path, by_block, data)[0] == [[0, 1, 4, 5, 6, 7], [2, 3, 8, 9]]

    def test_no_row_and_no_folder(self, data, tmp_path):
        text = '[index]\nfile = "l.csv"\nwhere = { split = "test" }\n[queries]\nfile = "l.csv"\n'
        with pytest.raises(InputError, match="no row has"):
            self.opened(tmp_path, text, data)
        with pytest.raises(InputError, match="no such folder"):
            self.opened(tmp_path, text, data / "absent")


class TestLesion:
    def test_a_profile_by_hand(self):
        lungs = np.zeros((20, 30), dtype=bool)
        lungs[4:16, 2:10] = lungs[4:16, 20:28] = True
        infection = np.zeros_like(lungs)
        infection[4:8, 2:6] = True  # half of the upper left
        infection[12:16, 20:28] = True  # the whole lower right
        infection[0:3] = True  # outside of the lungs: does not count
        assert lesion_profile(lungs, infection) == (0.5, 0, 0, 0, 0, 1.0)

    def test_no_lung_no_profile(self):
        assert lesion_profile(np.zeros((5, 5), dtype=bool), np.ones((5, 5), dtype=bool)) is None

    def test_a_lung_of_one_pixel(self):
        one = np.zeros((5, 5), dtype=bool)
        one[2, 2] = True
        assert sorted(lesion_profile(one, one)) == [0, 0, 0, 0, 0, 1]

    def test_rows_by_volume(self, tmp_path):
        folder = tmp_path / "ct-lung-seg"
        lungs = np.zeros((40, 40), dtype=np.uint8)
        lungs[10:30, 5:35] = 255
        for kind in ("images", "lung-masks", "infection-masks"):
            (folder / kind).mkdir(parents=True)
        for i, volume in enumerate((3, 0, 0)):
            ill = lungs // 2 * 2 if i == 0 else np.zeros_like(lungs)
            shown = np.zeros_like(lungs) if i == 2 else lungs
            for kind, image in (("images", lungs), ("lung-masks", shown), ("infection-masks", ill)):
                Image.fromarray(image).save(folder / kind / f"{i:04d}.png")
            assert volume in (0, 3)
        write_csv(folder / "slices.csv", ["slice", "volume_guess"], [["0000", 3], ["0001", 0], ["0002", 0]])
        checks = Checks()
        with open_protocol(find_protocol("lesion"), tmp_path, checks) as (index, queries):
            assert [(r.label, r.group) for r in index] == [(CLEAR, "volume 0")]
            assert [(r.label, r.group) for r in queries] == [(INFECTED, "volume 3")]
        assert checks.notes == ["1 slices show no lung in their mask and are left out"]
        (folder / "lung-masks" / "0001.png").unlink()
        with (
            pytest.raises(InputError, match="no file for slice 0001"),
            open_protocol(find_protocol("lesion"), tmp_path, Checks()),
        ):
            pass


class TestOrgans:
    @pytest.mark.parametrize(
        ("series", "study", "part", "region"),
        [
            ("CHEST CORONAL", "CT ABD AND PELVIS WO IV CONT", "ABDOMEN", "CHEST"),
            ("STANDARD 2.5MM", "CT ABD AND PELVIS WO IV CONT", "", "ABDOMEN"),
            ("CHEST/ABD/PEL 2.5", "CT CHEST", "CHEST", ""),
            ("", "", "LIVER", "ABDOMEN"),
            ("", "CT CHEST PULMONARY ANGIO", "", "CHEST"),
            ("Body 5.0", "", "CHEST_TO_PELVIS", ""),
            ("", "", "", ""),
        ],
    )
    def test_the_region_of_a_series(self, series, study, part, region):
        ds = Dataset()
        ds.SeriesDescription, ds.StudyDescription, ds.BodyPartExamined = series, study, part
        assert region_of(ds) == region

    def test_real_series(self, shared):
        checks = Checks()
        with open_protocol(find_protocol("organs"), shared, checks) as (index, queries):
            assert index is queries
            labels = {r.label for r in index}
            assert {"CHEST CT", "ABDOMEN CT", "ABDOMEN MR"} <= labels
            assert all(r.path.is_file() for r in index)
            held = [r.path for r in index if "dicomnode-organs-" in str(r.path)]
            assert len({r.group for r in index if r.label == "CHEST CT"}) >= 5
        assert held
        assert not any(p.exists() for p in held)  # unpacked files live no longer than the evaluation


def test_real_labels_of_every_other_protocol(shared):
    counts = {}
    for name in ("in-domain", "published", "leaky", "lesion"):
        with open_protocol(find_protocol(name), shared, Checks()) as (index, queries):
            counts[name] = len(index), len(queries)
            assert not {r.path for r in index} & {r.path for r in queries}
            if name != "leaky":
                assert not {r.group for r in index} & {r.group for r in queries}
    assert counts["in-domain"] == counts["published"] == (425, 118)
