"""What an upload may be: read from the connection within limits, archives unpacked within limits, pictures checked."""

from __future__ import annotations

import asyncio
import io
import random
import struct
import zipfile
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dicomnode.errors import UploadRefused, UploadTooLarge, UploadWrongKind
from dicomnode.models import pictures
from dicomnode.models.pictures import clean_picture, is_picture
from dicomnode.models.preprocess import prepare_picture
from dicomnode.web import uploads
from dicomnode.web.uploads import Received, receive
from dicomnode.workflow import unpacking
from dicomnode.workflow.unpacking import Kind, kind_of, unpack

MIB = 1 << 20
DICOM = bytes(128) + b"DICM" + bytes(300)
TYPE = "multipart/form-data; boundary=XX"


def part(name: str, data: bytes, filename: str | None = "SECRET.dcm") -> bytes:
    named = f'; filename="{filename}"' if filename is not None else ""
    return f'--XX\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode() + data + b"\r\n"


def body(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--XX--\r\n"


def read(
    data: bytes,
    folder: Path,
    *,
    step: int = 7000,
    kind: str = TYPE,
    length: str = "",
    max_bytes: int = MIB,
    files: int = 5,
) -> Received:
    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(data), step):
            yield data[at : at + step]

    folder.mkdir(exist_ok=True)
    return asyncio.run(receive(chunks(), kind, length, folder, max_bytes=max_bytes, max_files=5))


def refused(expected: type[UploadRefused], reason: str, call, *arguments, **keywords) -> UploadRefused:
    with pytest.raises(expected) as caught:
        call(*arguments, **keywords)
    assert caught.value.reason == reason
    assert "SECRET" not in str(caught.value)
    assert "\n" not in caught.value.line
    return caught.value


class TestReceive:
    @pytest.mark.parametrize("step", [1, 3, 1000, 5_000_000])
    def test_files_come_out_as_they_were_sent_however_the_body_is_cut(self, tmp_path, step):
        size = 3000 if step < 1000 else 3 * MIB
        sent = [random.Random(n).randbytes(size // (n + 1)) for n in range(3)] + [b"", b"\r\n--X\r\n--"]
        data = body(*(part("file", s) for s in sent), part("text", "lung nódule".encode(), None), part("k", b"7", None))
        got = read(data, tmp_path / "to", step=step, max_bytes=8 * MIB)
        assert [p.read_bytes() for p in got.files] == sent
        assert got.fields == {"text": "lung nódule", "k": "7"}

    def test_the_names_of_the_user_are_not_used(self, tmp_path):
        got = read(body(part("file", b"x", "../../SECRET/evil"), part("file", b"y", "a" * 2000)), tmp_path / "to")
        assert [p.name for p in got.files] == ["0", "1"]
        assert sorted(p.name for p in tmp_path.rglob("*")) == ["0", "1", "to"]

    def test_too_large_is_found_before_and_while_it_is_read(self, tmp_path):
        data = body(part("file", bytes(MIB // 2)), part("file", bytes(MIB)))
        error = refused(UploadTooLarge, "too-large", read, data, tmp_path / "a", length=str(2 * MIB))
        assert error.http_status == 413
        assert list((tmp_path / "a").iterdir()) == []
        refused(UploadTooLarge, "too-large", read, data, tmp_path / "b")
        refused(UploadTooLarge, "too-large", read, data, tmp_path / "c", length="not a number")

    def test_too_many_files_and_too_many_fields(self, tmp_path):
        refused(UploadTooLarge, "too-many-files", read, body(*[part("file", b"x")] * 6), tmp_path / "a")
        many = body(*(part(f"f{n}", b"x", None) for n in range(40)))
        refused(UploadTooLarge, "too-large", read, many, tmp_path / "b")
        refused(UploadTooLarge, "too-large", read, body(part("text", bytes(4000), None)), tmp_path / "c")

    @pytest.mark.parametrize(
        "data",
        [b"", b"--XX", b"garbage", part("file", b"cut"), body(part("file", b"x"))[:-4], b"--XX\r\nno header\r\n\r\n"],
    )
    def test_a_body_that_is_not_whole(self, tmp_path, data):
        refused(UploadRefused, "truncated", read, data, tmp_path / "to")

    def test_mutated_bodies_are_refused_or_read(self, tmp_path):
        good = body(part("file", DICOM), part("text", b"nodule", None), part("file", b"x"))
        chance = random.Random(5)
        for n in range(300):
            data = bytearray(good)
            for _ in range(chance.randint(1, 4)):
                at = chance.randrange(len(data))
                data[at : at + chance.choice((0, 1, 30))] = chance.randbytes(chance.choice((0, 1, 30)))
            try:
                got = read(bytes(data), tmp_path / str(n), step=chance.choice((1, 50, 5000)))
            except UploadRefused:
                continue
            assert sorted(p.name for p in (tmp_path / str(n)).iterdir()) == [str(i) for i in range(len(got.files))]

    def test_headers_without_end_are_not_collected(self, tmp_path):
        long = b"--XX\r\nContent-Disposition: " + b"a" * 2 * MIB
        refused(UploadRefused, "truncated", read, long, tmp_path / "a")
        many = b"--XX\r\n" + b"A: b\r\n" * 1000
        refused(UploadRefused, "truncated", read, many, tmp_path / "b")

    def test_what_is_no_file_counts_too(self, tmp_path):
        data = part("k", b"7", None) * 40_000  # 2.5 MiB, no file and one field
        refused(UploadTooLarge, "too-large", read, data, tmp_path / "a", step=64 << 10)
        refused(UploadTooLarge, "too-large", read, body() + bytes(2 * MIB), tmp_path / "b", step=64 << 10)

    @pytest.mark.parametrize("kind", ["", "application/json", "multipart/form-data", "multipart/mixed; boundary=XX"])
    def test_another_content_type(self, tmp_path, kind):
        refused(UploadWrongKind, "not-multipart", read, body(), tmp_path / "to", kind=kind)

    def test_a_sender_that_falls_silent_is_let_go(self, tmp_path, monkeypatch):
        monkeypatch.setattr(uploads, "IDLE_S", 0.1)

        async def silent() -> AsyncIterator[bytes]:
            yield part("file", b"x")
            await asyncio.sleep(30)

        def call() -> None:
            asyncio.run(receive(silent(), TYPE, "", tmp_path, max_bytes=MIB, max_files=5))

        refused(UploadRefused, "idle", call)

    def test_a_sender_that_drips_is_let_go(self, tmp_path, monkeypatch):
        monkeypatch.setattr(uploads, "IDLE_S", 0.3)

        async def drips() -> AsyncIterator[bytes]:
            for byte in part("file", bytes(MIB)):
                yield bytes([byte])
                await asyncio.sleep(0.02)

        def call() -> None:
            asyncio.run(receive(drips(), TYPE, "", tmp_path, max_bytes=MIB, max_files=5))

        refused(UploadRefused, "idle", call)


def archive(entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as made:
        for name, data in entries.items():
            made.writestr(name, data)
    return buffer.getvalue()


class Opened:
    """``unpack`` on given bytes, in a folder."""

    def __init__(self, folder: Path, *sent: bytes, max_bytes: int = MIB) -> None:
        self.folder = folder / "upload"
        self.folder.mkdir()
        paths = []
        for n, data in enumerate(sent):
            paths.append(self.folder / str(n))
            paths[-1].write_bytes(data)
        self.found = unpack(paths, self.folder, max_bytes)

    def data(self) -> list[bytes]:
        return [p.read_bytes() for p in self.found.files]


class TestArchives:
    @pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
    def test_images_come_out_and_nothing_else(self, tmp_path, method):
        entries = {"a/b/1.dcm": DICOM, "a/": b"", "DICOMDIR.txt": b"hello", "x.PNG": DICOM + b"2", "empty": b""}
        opened = Opened(tmp_path, archive(entries, method))
        assert opened.data() == [DICOM, DICOM + b"2"]
        assert opened.found.skipped == {"not DICOM": 1, "empty": 1}
        assert sorted(p.is_file() for p in opened.folder.rglob("*")) == [False, True, True], "the archive is gone too"

    @pytest.mark.parametrize(
        "name", ["../../evil", "/etc/evil", "C:\\evil", "a\x00b", "SECRET/" * 500 + "a", "\u202egnp.exe"]
    )
    def test_names_are_never_paths(self, tmp_path, name):
        opened = Opened(tmp_path, archive({name: DICOM}))
        assert [p.relative_to(opened.folder).as_posix() for p in opened.found.files] == ["archive-0/0"]
        assert {p.relative_to(tmp_path).parts[0] for p in tmp_path.rglob("*")} == {"upload"}

    def test_a_link_in_an_archive_is_junk(self, tmp_path):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as made:
            link = zipfile.ZipInfo("link")
            link.external_attr = 0o120777 << 16
            made.writestr(link, "/etc/passwd")
            made.writestr("a", DICOM)
        opened = Opened(tmp_path, buffer.getvalue())
        assert opened.data() == [DICOM]
        assert not any(p.is_symlink() for p in opened.folder.rglob("*"))

    def test_an_archive_in_an_archive_stays_closed(self, tmp_path):
        opened = Opened(tmp_path, archive({"inner.zip": archive({"a": DICOM}), "b": DICOM}))
        assert (opened.data(), opened.found.skipped) == ([DICOM], {"archive in an archive": 1})

    def test_archives_and_files_together(self, tmp_path):
        opened = Opened(tmp_path, archive({"a": DICOM + b"1"}), DICOM + b"2", archive({"a": DICOM + b"3"}))
        assert sorted(opened.data()) == [DICOM + b"1", DICOM + b"2", DICOM + b"3"]

    def test_what_unpacks_to_too_much(self, tmp_path):
        limit = MIB * unpacking.UNPACKED_FACTOR
        bomb = archive({"a": DICOM + bytes(limit)})
        assert len(bomb) < MIB
        assert refused(UploadTooLarge, "archive-bomb", Opened, tmp_path, bomb).http_status == 413
        assert not any(p.is_file() and p.stat().st_size > MIB for p in tmp_path.rglob("*"))

    def test_several_archives_share_what_they_may_unpack_to(self, tmp_path):
        half = archive({"a": DICOM + bytes(3 * MIB)})
        refused(UploadTooLarge, "archive-bomb", Opened, tmp_path, half, half)

    def test_a_ratio_that_no_image_has(self, tmp_path, monkeypatch):
        monkeypatch.setattr(unpacking, "RATIO_FROM", MIB)
        data = archive({"a": DICOM + bytes(8 * MIB)})
        refused(UploadTooLarge, "archive-bomb", Opened, tmp_path, data, max_bytes=100 * MIB)

    def test_an_archive_that_lies_of_its_size_gives_no_more_than_it_says(self, tmp_path):
        data = bytearray(archive({"a": DICOM + bytes(8 * MIB)}))
        said = struct.pack("<I", len(DICOM) + 8 * MIB)
        while said in data:
            at = data.index(said)
            data[at : at + 4] = struct.pack("<I", 1000)
        refused(UploadRefused, "damaged-archive", Opened, tmp_path, bytes(data))  # the checksum is of the whole
        assert sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()) < len(data) + 2000

    def test_too_many_entries(self, tmp_path, monkeypatch):
        monkeypatch.setattr(unpacking, "MAX_FILES", 10)
        refused(UploadTooLarge, "too-many-files", Opened, tmp_path, archive({str(n): DICOM for n in range(11)}))

    def test_a_list_of_entries_too_long_to_read(self, tmp_path):
        data = bytearray(archive({"a": DICOM}))
        end = data.rindex(b"PK\x05\x06")
        struct.pack_into("<I", data, end + 12, unpacking.MAX_DIRECTORY + 1)
        refused(UploadRefused, "too-many-files", Opened, tmp_path, bytes(data))

    def test_an_encrypted_archive(self, tmp_path):
        data = bytearray(archive({"a": DICOM}))
        for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            data[data.index(signature) + offset] |= 1
        error = refused(UploadRefused, "encrypted", Opened, tmp_path, bytes(data))
        assert error.http_status == 422

    def test_a_method_that_could_ask_for_gigabytes(self, tmp_path):
        refused(UploadRefused, "damaged-archive", Opened, tmp_path, archive({"a": DICOM}, zipfile.ZIP_LZMA))

    def test_damaged_archives(self, tmp_path):
        good = archive({"a": DICOM + random.Random(0).randbytes(5000)})
        flipped = bytearray(good)
        flipped[1000] ^= 0xFF
        for n, data in enumerate((good[:-30], good[: len(good) // 2], bytes(flipped), b"PK\x03\x04" + bytes(100))):
            (tmp_path / str(n)).mkdir()
            refused(UploadRefused, "damaged-archive", Opened, tmp_path / str(n), data)

    def test_nothing_in_it(self, tmp_path):
        refused(UploadRefused, "empty", Opened, tmp_path, archive({}))
        (tmp_path / "b").mkdir()
        refused(UploadRefused, "no-image", Opened, tmp_path / "b", archive({"a": b"text"}))
        (tmp_path / "c").mkdir()
        refused(UploadRefused, "empty", Opened, tmp_path / "c")

    def test_mutated_archives_are_refused_or_opened(self, tmp_path):
        good = archive({"a": DICOM, "b": DICOM + b"2"})
        chance = random.Random(7)
        for n in range(300):
            data = bytearray(good)
            for _ in range(chance.randint(1, 4)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            (tmp_path / str(n)).mkdir()
            try:
                Opened(tmp_path / str(n), bytes(data))
            except UploadRefused:
                continue


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"", Kind.EMPTY), (b"<svg", Kind.OTHER), (DICOM, Kind.DICOM), (b"PK\x03\x04", Kind.ARCHIVE),
        (b"\xff\xd8\xff\xe0", Kind.PICTURE), (b"RIFF1234WEBPVP8 ", Kind.PICTURE), (b"RIFF1234WAVE", Kind.OTHER),
        (b"\x89PNG\r\n\x1a\n", Kind.PICTURE), (b"GIF89a", Kind.OTHER), (b"BM" + bytes(50), Kind.OTHER),
        (b"II*\0", Kind.OTHER), (b"Rar!\x1a\x07", Kind.OTHER), (b"\x1f\x8b\x08", Kind.OTHER),
    ],
)  # fmt: skip
def test_a_file_is_judged_by_its_content(head, kind):
    assert kind_of(head) is kind


GREY = np.add.outer(np.arange(30), np.arange(50)).astype(np.uint8) * 3


def saved(image: Image.Image, kind: str, **how) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def cleaned(data: bytes, folder: Path) -> Image.Image:
    assert is_picture(data[:12])
    (folder / "in.svg").write_bytes(data)
    rows, columns, _ = clean_picture(folder / "in.svg", folder / "out.png")
    with Image.open(folder / "out.png") as image:
        image.load()
        assert (image.mode, image.size, image.info, image.format) == ("L", (columns, rows), {}, "PNG")
        return image


class TestPictures:
    @pytest.mark.parametrize(("kind", "how"), [("PNG", {}), ("WEBP", {"lossless": True}), ("JPEG", {"quality": 95})])
    @pytest.mark.parametrize("mode", ["L", "RGB"])
    def test_grey_and_colour(self, tmp_path, kind, how, mode):
        got = np.asarray(cleaned(saved(Image.fromarray(GREY).convert(mode), kind, **how), tmp_path)).astype(int)
        assert np.abs(got - GREY).max() <= (4 if kind == "JPEG" else 1)

    def test_the_search_sees_what_the_file_shows(self, tmp_path):
        colour = np.stack([GREY, GREY // 2, 255 - GREY], -1)
        for n, image in enumerate((Image.fromarray(GREY), Image.fromarray(colour))):
            (tmp_path / f"{n}.png").write_bytes(saved(image, "PNG"))
            clean_picture(tmp_path / f"{n}.png", tmp_path / "out.png")
            before, after = prepare_picture(tmp_path / f"{n}.png").pixels, prepare_picture(tmp_path / "out.png").pixels
            assert np.array_equal(before, after)

    def test_sixteen_bits(self, tmp_path):
        deep = GREY.astype(np.uint16) * 16 + 1000
        got = np.asarray(cleaned(saved(Image.fromarray(deep), "PNG"), tmp_path)).astype(float)
        wanted = (GREY - GREY.min()) / (int(GREY.max()) - int(GREY.min())) * 255
        assert np.abs(got - wanted).max() <= 1

    def test_palette_one_bit_and_cmyk(self, tmp_path):
        colour = Image.fromarray(GREY).convert("P", palette=Image.Palette.ADAPTIVE)
        assert np.abs(np.asarray(cleaned(saved(colour, "PNG"), tmp_path)).astype(int) - GREY).max() <= 4
        bits = Image.fromarray(GREY > 100)
        assert np.array_equal(np.asarray(cleaned(saved(bits, "PNG"), tmp_path)) == 255, GREY > 100)
        inks = Image.fromarray(GREY).convert("RGB").convert("CMYK")
        assert np.abs(np.asarray(cleaned(saved(inks, "JPEG", quality=95), tmp_path)).astype(int) - GREY).max() <= 6

    @pytest.mark.parametrize("mode", ["RGBA", "LA"])
    @pytest.mark.parametrize("kind", ["PNG", "WEBP"])
    def test_what_is_transparent_is_black(self, tmp_path, mode, kind):
        alpha = np.where(np.arange(50) < 25, 0, 255).astype(np.uint8)[None].repeat(30, 0)
        layers = [np.full_like(GREY, 200)] * (len(mode) - 1) + [alpha]
        got = np.asarray(cleaned(saved(Image.fromarray(np.stack(layers, -1), mode), kind, lossless=True), tmp_path))
        assert got[:, :25].max() == 0
        assert got[:, 25:].min() >= 199

    def test_a_transparent_colour_of_a_palette_is_black(self, tmp_path):
        palette = Image.new("P", (4, 1))
        palette.putpalette([250, 250, 250, 90, 90, 90])
        palette.putdata([0, 1, 0, 1])
        assert list(np.asarray(cleaned(saved(palette, "PNG", transparency=0), tmp_path))[0]) == [0, 90, 0, 90]

    @pytest.mark.parametrize("kind", ["PNG", "WEBP"])
    def test_an_animation(self, tmp_path, kind):
        frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
        data = saved(frames[0].convert("RGB"), kind, save_all=True, append_images=[frames[1].convert("RGB")])
        assert refused(UploadWrongKind, "animated", cleaned, data, tmp_path).http_status == 415

    def test_a_camera_s_second_view_is_left_out(self, tmp_path):
        data = saved(Image.fromarray(GREY), "MPO", save_all=True, append_images=[Image.fromarray(255 - GREY)])
        assert np.abs(np.asarray(cleaned(data, tmp_path)).astype(int) - GREY).max() < 20

    def test_a_picture_that_decodes_to_too_much_is_refused_before(self, tmp_path):
        def chunk(name: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

        for side, status in ((7100, 413), (60_000, 413), (2**31 - 1, None)):
            head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
            data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
            with pytest.raises(UploadRefused) as caught:
                cleaned(data, tmp_path)
            assert caught.value.reason in ("too-many-pixels", "truncated")
            assert status is None or caught.value.http_status == status

    @pytest.mark.parametrize(("kind", "how"), [("PNG", {}), ("WEBP", {"lossless": True}), ("JPEG", {})])
    def test_a_picture_that_is_cut_short(self, tmp_path, kind, how):
        noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90), dtype=np.uint8))
        data = saved(noise, kind, **how)
        for length in (12, 30, len(data) // 2, len(data) - 200):
            assert refused(UploadRefused, "truncated", cleaned, data[:length], tmp_path).http_status == 422
        refused(UploadRefused, "truncated", cleaned, data[:12] + bytes(500), tmp_path)

    def test_mutated_pictures_are_refused_or_decoded(self, tmp_path):
        chance = random.Random(3)
        good = [saved(Image.fromarray(GREY), kind) for kind in ("PNG", "JPEG", "WEBP")]
        for n in range(300):
            data = bytearray(good[n % 3])
            for _ in range(3):
                data[chance.randrange(12, len(data))] = chance.randrange(256)
            try:
                cleaned(bytes(data), tmp_path)
            except UploadRefused:
                continue

    def test_text_beside_the_pixels_that_is_too_long_is_refused(self, tmp_path):
        from PIL import PngImagePlugin

        info = PngImagePlugin.PngInfo()
        info.add_itxt("SECRET", "x" * 50_000_000, zip=True)
        data = saved(Image.fromarray(GREY), "PNG", pnginfo=info)
        refused(UploadRefused, "truncated", cleaned, data, tmp_path)

    def test_the_limit_of_pixels_is_the_one_that_is_documented(self):
        page = (Path(__file__).parents[2] / "docs" / "api.md").read_text("utf-8")
        assert f"{pictures.MAX_PICTURE_PIXELS // 1_000_000} million pixels" in page
        assert f"{unpacking.MAX_FILES} files" in page
