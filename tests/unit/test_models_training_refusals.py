"""What a training must not do to what is there, and what it says of input that cannot be used."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from training_samples import command, labelled, picture, slices, write_csv, write_pictures

from dicomnode.csvrows import read_csv
from dicomnode.errors import DicomnodeError, InputError, StorageFull, UsageError
from dicomnode.models.manifest import find_pack
from dicomnode.models.training.build import BuildOptions, check_pack_target
from dicomnode.models.training.cenet import CenetOptions, train_cenet
from dicomnode.models.training.data import load_covid_ct, load_sars, load_segmentation
from dicomnode.models.training.run import BEST, CHECKPOINT, CURVES, PLOT, TABLE, Run, load_checkpoint
from dicomnode.models.training.tables import DataProblems, load_labels, load_slices
from dicomnode.models.training.unet import UnetOptions, train_unet
from dicomnode.models.training.xception import XceptionOptions, split_training, train_xception
from dicomnode.testing import sample_study


def small_cenet(out: Path, **more: Any) -> CenetOptions:
    options = CenetOptions(out, out, "resnet34", 0.25, imagenet=False, epochs=1, batch=4, max_steps=1, seed=3)
    return replace(options, **more)


def tiny_run(folder: Path, **more: Any) -> Run:
    module = torch.nn.Linear(300, 300)
    optimiser = torch.optim.SGD(module.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda _: 1.0)
    return Run(folder, {"m": module}, optimiser, schedule, {"a": 1}, **more)


def without_sources(checkpoint: Path) -> None:
    """As an earlier version wrote it."""
    state = load_checkpoint(checkpoint)
    del state["sources"]
    torch.save(state, checkpoint)


def one_line(error: BaseException) -> str:
    assert "\n" not in str(error)
    return str(error)


@contextmanager
def full_at(size: int) -> Iterator[None]:
    """No file grows beyond ``size`` bytes: what a full disk does, without a disk of one's own."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class TestAnotherRunsFolder:
    def test_other_slices_are_refused_and_the_same_go_on(self, tmp_path: Path) -> None:
        train_cenet(small_cenet(tmp_path), slices())
        assert len(train_cenet(small_cenet(tmp_path), slices())["curves"]) == 1
        with pytest.raises(InputError, match="on other outlined slices") as e:
            train_cenet(small_cenet(tmp_path), slices(seed=9))
        assert str(tmp_path) in one_line(e.value)

    def test_a_checkpoint_of_an_earlier_version_goes_on(self, tmp_path: Path) -> None:
        train_cenet(small_cenet(tmp_path), slices())
        without_sources(tmp_path / CHECKPOINT)
        assert len(train_cenet(small_cenet(tmp_path), slices(seed=9))["curves"]) == 1

    def test_other_options_are_named(self, tmp_path: Path) -> None:
        train_cenet(small_cenet(tmp_path), slices())
        with pytest.raises(InputError, match=r"other options: epochs 1, not 2; seed 3, not 4 \(choose another --out\)"):
            train_cenet(small_cenet(tmp_path, epochs=2, seed=4), slices())

    def test_another_cenet_or_other_labels_are_refused(self, tmp_path: Path) -> None:
        begun = [train_cenet(small_cenet(tmp_path / f"{s}", seed=s), slices())["checkpoint"] for s in (3, 4)]
        options = XceptionOptions(tmp_path, tmp_path / "x", begun[0], epochs=1, batch=4, middle=1, max_steps=1)
        train_xception(options, labelled(), slices())
        train_xception(options, labelled(), slices())
        with pytest.raises(InputError, match="on other labelled images"):
            train_xception(options, labelled(seed=2), slices())
        with pytest.raises(InputError, match="on another CE-Net"):
            train_xception(replace(options, cenet=begun[1]), labelled(), slices())

    def test_masks_of_a_unet_count_too(self, tmp_path: Path) -> None:
        options = UnetOptions(tmp_path, tmp_path / "u", "unet-ml", epochs=1, base=8, batch=4, max_steps=1)
        train_unet(options, slices(), labelled())
        with pytest.raises(InputError, match="on other outlined slices"):
            train_unet(options, slices(seed=9), labelled())

    def test_a_folder_that_was_moved_is_the_same_data(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        rows = [(name, "ab"[i % 2]) for i, name in enumerate(write_pictures(tmp_path / "a", 6))]
        path = write_csv(tmp_path / "a" / "l.csv", ("path", "label"), rows)
        before = load_labels(path).fingerprint
        shutil.move(tmp_path / "a", tmp_path / "b")
        assert load_labels(tmp_path / "b" / "l.csv").fingerprint == before
        write_csv(tmp_path / "b" / "l.csv", ("path", "label"), [*rows[:-1], (rows[-1][0], "a")])
        assert load_labels(tmp_path / "b" / "l.csv").fingerprint != before


class TestFilesOfOnesOwn:
    @pytest.mark.parametrize("name", [TABLE, CURVES, PLOT, BEST])
    def test_they_are_not_overwritten(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_text("mine")
        with pytest.raises(InputError, match=f"no run's and would be overwritten: {name}") as e:
            train_cenet(small_cenet(tmp_path), slices())
        assert one_line(e.value).startswith(str(tmp_path))
        assert (tmp_path / name).read_text() == "mine"
        assert sorted(p.name for p in tmp_path.iterdir()) == [name]

    def test_a_run_killed_between_its_first_two_files_goes_on(self, tmp_path: Path) -> None:
        run = tiny_run(tmp_path)
        for _ in run.epochs(1, 1):
            run.end_epoch({"validation": 1.0})
        for name in (CHECKPOINT, CURVES, TABLE, PLOT):
            (tmp_path / name).unlink()
        assert tiny_run(tmp_path).resume() == 0

    def test_a_checkpoint_of_another_program_is_refused(self, tmp_path: Path) -> None:
        torch.save({"state_dict": {}}, tmp_path / CHECKPOINT)
        with pytest.raises(InputError, match="is not the checkpoint of a training"):
            tiny_run(tmp_path).resume()


class TestWhereThePackGoes:
    def test_a_folder_that_is_absent_or_empty_is_free(self, tmp_path: Path) -> None:
        check_pack_target(tmp_path / "none", tmp_path / "run")
        (tmp_path / "empty").mkdir()
        check_pack_target(tmp_path / "empty", tmp_path / "run")

    def test_anything_else_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        for taken in (tmp_path, tmp_path / "file", find_pack("cenet-xception")):
            with pytest.raises(InputError, match="is there already; nothing is overwritten") as e:
                check_pack_target(taken, tmp_path / "run")
            assert "--pack" in one_line(e.value)

    def test_the_command_refuses_before_anything_is_read(self, tmp_path: Path) -> None:
        (tmp_path / "pack").mkdir()
        (tmp_path / "pack" / "manifest.json").write_text("{}")
        words = ("--data", tmp_path, "--cenet", tmp_path / "none.pt", "--out", tmp_path / "run")
        done = command("train", "xception", *words, "--pack", tmp_path / "pack")
        assert done.returncode == 1
        assert "is there already; nothing is overwritten" in done.stderr
        assert (tmp_path / "pack" / "manifest.json").read_text() == "{}"
        assert not (tmp_path / "run").exists()

    def test_the_pack_of_this_very_run_is_written_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from dicomnode.models.training import build

        begun = train_cenet(small_cenet(tmp_path / "cenet"), slices())["checkpoint"]
        options = XceptionOptions(tmp_path, tmp_path / "run", begun, epochs=1, batch=4, middle=1, max_steps=1)
        checkpoint = train_xception(options, labelled(), slices())["checkpoint"]
        for name, data in (("covid_ct", labelled()), ("sars", labelled()), ("segmentation", slices())):
            monkeypatch.setattr(build, f"load_{name}", lambda _, data=data: data)
        monkeypatch.setattr(build, "measure", lambda *_: {"rows": {build.MODEL_ROW: {"map": {"mean": 0.5}}}})
        monkeypatch.setattr(build, "render_card", lambda *_: "card\n")
        build.build_pack(BuildOptions(tmp_path, tmp_path / "pack", checkpoint, dim=8))
        check_pack_target(tmp_path / "pack", tmp_path / "run")
        with pytest.raises(InputError, match="is there already"):
            check_pack_target(tmp_path / "pack", tmp_path / "cenet")


class TestAFullDisk:
    def test_the_last_whole_checkpoint_stays(self, tmp_path: Path) -> None:
        run = tiny_run(tmp_path)
        with pytest.raises(StorageFull) as e:
            for epoch in run.epochs(3, 1):
                with full_at(100_000 if epoch == 1 else 10_000_000):
                    run.end_epoch({"validation": 1.0 - epoch})
        assert "the disk is full" in one_line(e.value)
        assert str(tmp_path) in str(e.value)
        assert not list(tmp_path.glob("*.new"))
        assert len(load_checkpoint(tmp_path / CHECKPOINT)["curves"]) == 1
        again = tiny_run(tmp_path)
        assert again.resume() == 1

    def test_the_curves_are_whole_or_as_before(self, tmp_path: Path) -> None:
        run = tiny_run(tmp_path)
        run.end_epoch({"loss": 1.0})
        before = {name: (tmp_path / name).read_bytes() for name in (CURVES, TABLE, PLOT)}
        for name in before:  # a disk of which nothing is left
            (tmp_path / f"{name}.new").symlink_to("/dev/full")
        with pytest.raises(StorageFull):
            run.end_epoch({"loss": 0.5})
        assert {name: (tmp_path / name).read_bytes() for name in before} == before


class TestTheFolderOfDataSets:
    def lungs(self, root: Path) -> Path:
        folder = root / "ct-lung-seg"
        for kind in ("images", "lung-masks", "infection-masks"):
            (folder / kind).mkdir(parents=True)
            for i in range(2):
                Image.fromarray(picture(i)).save(folder / kind / f"{i}.png")
        write_csv(folder / "slices.csv", ("slice", "volume_guess"), [("0", "0"), ("1", "1")])
        return folder

    def covid(self, root: Path) -> Path:
        folder = root / "covid-ct"
        folder.mkdir()
        names = write_pictures(folder, 2)
        rows = [(n, "COVID", f"p{i}", "train") for i, n in enumerate(names)]
        write_csv(folder / "labels.csv", ("path", "label", "patient", "split"), rows)
        return folder

    def refused(self, root: Path, load: Any = load_segmentation) -> str:
        with pytest.raises(DicomnodeError) as e:
            load(root)
        return one_line(e.value)

    def test_a_good_one_is_read_with_and_without_a_byte_order_mark(self, tmp_path: Path) -> None:
        folder = self.covid(tmp_path)
        before = load_covid_ct(tmp_path).fingerprint
        table = folder / "labels.csv"
        table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes())
        assert load_covid_ct(tmp_path).fingerprint == before
        self.lungs(tmp_path)
        assert load_segmentation(tmp_path).volumes.tolist() == [0, 1]

    def test_a_mask_that_is_text(self, tmp_path: Path) -> None:
        (self.lungs(tmp_path) / "infection-masks" / "1.png").write_text("no mask")
        found = self.refused(tmp_path)
        assert "slices.csv: row 3: infection-masks/1.png: is not an image that can be read" in found

    def test_a_volume_that_is_no_number(self, tmp_path: Path) -> None:
        write_csv(self.lungs(tmp_path) / "slices.csv", ("slice", "volume_guess"), [("0", "0"), ("1", "a")])
        assert "slices.csv: row 3: volume_guess 'a' is no whole number" in self.refused(tmp_path)

    @pytest.mark.parametrize("stem", ["", "..", "/etc/passwd", "a\0b", "n" * 300, "7"])
    def test_a_slice_without_a_file(self, tmp_path: Path, stem: str) -> None:
        write_csv(self.lungs(tmp_path) / "slices.csv", ("slice", "volume_guess"), [(stem, "0")])
        assert "slices.csv: row 2: " in self.refused(tmp_path)

    def test_an_image_of_400_million_pixels(self, tmp_path: Path) -> None:
        Image.new("1", (20_000, 20_000)).save(self.covid(tmp_path) / "1.png")
        found = self.refused(tmp_path, load_covid_ct)
        assert "labels.csv: row 3: 1.png: has more than 100 million pixels" in found

    def test_a_table_in_latin_1(self, tmp_path: Path) -> None:
        (self.covid(tmp_path) / "labels.csv").write_bytes(
            "path,label\n0.png,COVID\nM\xfcller.png,x\n".encode("latin-1")
        )
        found = self.refused(tmp_path, load_covid_ct)
        assert "labels.csv: is not a readable CSV file: row 3 is not UTF-8" in found

    def test_a_missing_folder_is_wrong_usage(self, tmp_path: Path) -> None:
        for load in (load_covid_ct, load_sars, load_segmentation):
            with pytest.raises(UsageError, match="is missing"):
                load(tmp_path)


class TestTables:
    COLUMNS = ("path", "label", "patient")

    def problems(self, path: Path) -> str:
        with pytest.raises(DataProblems) as e:
            load_labels(path)
        one_line(e.value)
        return "\n".join(e.value.problems)

    def rows(self, folder: Path) -> list[tuple[object, ...]]:
        return [(name, "ab"[i % 2], f"P{i}") for i, name in enumerate(write_pictures(folder, 4))]

    def test_paths_that_no_file_can_have_are_rows_among_others(self, tmp_path: Path) -> None:
        bad = [("a\0b.png", "a", "P7"), ("n" * 300 + ".png", "a", "P8"), ("gone.png", "a", "P9")]
        found = self.problems(write_csv(tmp_path / "l.csv", self.COLUMNS, [*self.rows(tmp_path), *bad]))
        assert "row 6: a\\x00b.png: is no name of a file" in found
        assert "row 7: nnn" in found
        assert "cannot be read (File name too long)" in found
        assert "row 8: gone.png: is missing" in found
        columns = ("path", "lung_mask", "infection_mask", "volume")
        path = write_csv(tmp_path / "s.csv", columns, [("0.png", "a\0b", "n" * 300, "A")])
        with pytest.raises(DataProblems, match=r"lung_mask a\\x00b: is no name"):
            load_slices(path)

    def test_a_row_with_more_cells_than_the_header(self, tmp_path: Path) -> None:
        path = write_csv(tmp_path / "l.csv", self.COLUMNS, self.rows(tmp_path))
        with path.open("a") as f:
            f.write("5.png,Pneumonia, viral,P9\n")
        assert "row 6 has 4 cells, the header 3" in self.problems(path)

    def test_a_column_twice(self, tmp_path: Path) -> None:
        path = write_csv(tmp_path / "l.csv", ("path", "label", "label"), self.rows(tmp_path))
        assert "column 'label' is there twice" in self.problems(path)

    def test_what_a_spreadsheet_leaves_behind_the_last_column_is_no_problem(self, tmp_path: Path) -> None:
        path = write_csv(tmp_path / "l.csv", (*self.COLUMNS, "", ""), self.rows(tmp_path))
        with path.open("a") as f:
            f.write("5.png,Pneumonia,P9,,,,\n")
        assert read_csv(path).problems == ()

    def test_tables_that_are_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no such file"):
            load_labels(tmp_path / "none.csv")
        (tmp_path / "folder.csv").mkdir()
        with pytest.raises(UsageError, match="is a folder, not a table"):
            load_labels(tmp_path / "folder.csv")
        done = command("train", "head", "--data", tmp_path / "none.csv", "--out", tmp_path / "run")
        assert done.returncode == 2
        assert f"error: {tmp_path}/none.csv: no such file" in done.stderr

    @pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
    def test_a_table_that_may_not_be_read(self, tmp_path: Path) -> None:
        (tmp_path / "l.csv").touch(mode=0)
        with pytest.raises(InputError, match="Permission denied"):
            load_labels(tmp_path / "l.csv")

    def test_frames_that_are_not_taken_are_told(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        rows = self.rows(tmp_path)
        load_labels(write_csv(tmp_path / "l.csv", self.COLUMNS, rows))
        assert "frames" not in capsys.readouterr().err
        (dataset,) = sample_study(slices=1)
        dataset.NumberOfFrames = 2
        dataset.PixelData = dataset.PixelData * 2
        dataset.save_as(tmp_path / "two.dcm", enforce_file_format=True)
        load_labels(write_csv(tmp_path / "l.csv", self.COLUMNS, [*rows, ("two.dcm", "a", "P9")]))
        assert "l.csv: 1 of the images have several frames: the first of each is taken" in capsys.readouterr().err


class TestTooFew:
    def test_images_are_counted_with_what_validates(self, tmp_path: Path) -> None:
        with pytest.raises(InputError) as e:
            split_training(labelled(12), 0.25, 0, 32, "l.csv")
        found = one_line(e.value)
        assert found.startswith("l.csv: leaves 8 images to train on, after --validate 0.25 took 4: 32 are needed")
        data = labelled(12)
        with pytest.raises(InputError, match=r"l\.csv: .*of one class only, 'ill'"):
            split_training(data.part(data.labels == 1), 0.0, 0, 2, "l.csv")

    def test_slices_are_counted_with_what_validates(self, tmp_path: Path) -> None:
        options = small_cenet(tmp_path / "run", data=tmp_path / "s.csv", batch=16)
        with pytest.raises(InputError, match=r"s\.csv: leaves 8 slices to train on: 16 are needed"):
            train_cenet(options, slices())
        with pytest.raises(InputError, match=r"s\.csv: leaves 6 slices .*after --validate 0.2 took 2: 16 are needed"):
            train_cenet(replace(options, validate=0.2), slices())
        unet = UnetOptions(tmp_path / "s.csv", tmp_path / "u", base=8)
        with pytest.raises(InputError, match=r"s\.csv: leaves 8 outlined slices to train on: 16 are needed"):
            train_unet(unet, slices())
        one = replace(slices(), volumes=np.zeros(10, dtype=int))
        with pytest.raises(InputError, match=r"s\.csv: has slices of one volume only"):
            train_cenet(replace(options, validate=0.2), one)


@pytest.mark.parametrize(
    "content", [b"", b"text\n", b"path,label\na,b\n", b"\x80\x02", b"cabc\n", bytes(range(256)), b"\x00" * 300]
)
def test_junk_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(InputError, match="is not a readable checkpoint") as e:
        load_checkpoint(tmp_path / "x.pt")
    assert str(tmp_path / "x.pt") in one_line(e.value)
