from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.spec import AbstractFileSystem
from PIL import Image

from mloc_dagster.executors import images
from mloc_dagster.executors.images import THREAD_NAME, ImageLoader, decode_image
from mloc_dagster.net import Reach
from mloc_dagster.results import open_store
from mloc_dagster.settings import settings
from tests.image_server import ImageServer, Page, coloured, encoded, image_server, send
from tests.tiny_vision import COLOURS, square

RED = COLOURS["red"]
LIMIT = 4_000


@pytest.fixture(scope="module")
def server() -> Iterator[ImageServer]:
    with image_server() as running:
        yield running


def of_no_task(name: str) -> bytes:
    raise FileNotFoundError(name)


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> Iterator[ImageLoader]:
    """Takes images of 4,000 bytes at most."""
    monkeypatch.setenv("MLOC_IMAGE_MAX_BYTES", str(LIMIT))
    settings.cache_clear()
    with closing(ImageLoader(of_no_task)) as opened:
        yield opened


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> Iterator[ImageLoader]:
    """Waits half a second for an image."""
    monkeypatch.setenv("MLOC_IMAGE_TIMEOUT_S", "0.5")
    settings.cache_clear()
    with closing(ImageLoader(of_no_task)) as opened:
        yield opened


def centre(picture: Any) -> tuple[int, int, int]:
    return picture.getpixel((picture.width // 2, picture.height // 2))


def refusal(loader: ImageLoader, reference: str) -> str:
    with pytest.raises(ValueError, match=r"^image ") as caught:
        loader.load(reference)
    return str(caught.value).removeprefix(f"image {reference}: ")


def test_a_url_is_the_picture_behind_it(loader: ImageLoader, server: ImageServer) -> None:
    data = coloured("red")
    loaded = loader.load(server.add("/red.png", send(data)))
    assert loaded.picture.mode == "RGB"
    assert loaded.picture.size == (32, 32)
    assert centre(loaded.picture) == RED
    assert loaded.sha256 == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_the_formats_it_reads(form: str) -> None:
    picture = decode_image(encoded(square("red"), form))
    assert (picture.mode, picture.size) == ("RGB", (32, 32))
    assert all(abs(one - two) < 8 for one, two in zip(centre(picture), RED, strict=True))


def test_a_moving_picture_is_its_first_frame() -> None:
    frames = [square(colour) for colour in ("red", "blue")]
    moving = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert centre(decode_image(moving)) == RED


def test_a_picture_that_says_to_be_too_large_is_not_fetched(
    loader: ImageLoader, server: ImageServer
) -> None:
    url = server.add("/announced.png", send(b"", Content_Length="5000000"))
    assert (
        refusal(loader, url) == "5,000,000 bytes are more than MLOC_IMAGE_MAX_BYTES allows: 4,000"
    )


def test_one_that_does_not_say_so_is_given_up_at_the_limit(
    loader: ImageLoader, server: ImageServer
) -> None:
    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not server.closing.is_set():
            handler.wfile.write(bytes(4096))

    assert refusal(loader, server.add("/endless.png", endless)) == (
        "more than 4,000 bytes are more than MLOC_IMAGE_MAX_BYTES allows: 4,000"
    )


def silent(server: ImageServer) -> Page:
    def page(handler: BaseHTTPRequestHandler) -> None:
        server.closing.wait(30)

    return page


def dripping(server: ImageServer) -> Page:
    def page(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not server.closing.wait(0.05):
            handler.wfile.write(b"\0")

    return page


@pytest.mark.parametrize("kind", [silent, dripping])
def test_a_server_that_is_too_slow_is_left(
    hasty: ImageLoader, server: ImageServer, kind: Any
) -> None:
    url = server.add(f"/{kind.__name__}.png", kind(server))
    assert refusal(hasty, url) == "it took longer than MLOC_IMAGE_TIMEOUT_S allows: 0.5 s"


def test_a_redirect_is_followed_and_a_circle_is_not(
    loader: ImageLoader, server: ImageServer
) -> None:
    server.add("/there.png", send(coloured("red")))
    here = server.add("/here.png", send(b"", 302, Location="/there.png"))
    assert centre(loader.load(here).picture) == RED
    circle = server.add("/circle.png", send(b"", 302, Location="/circle.png"))
    assert refusal(loader, circle) == "more than 5 redirects"


def test_a_redirect_leads_to_no_file_of_this_machine(
    loader: ImageLoader, server: ImageServer, tmp_path: Path
) -> None:
    (tmp_path / "red.png").write_bytes(coloured("red"))
    url = server.add("/local.png", send(b"", 302, Location=f"file://{tmp_path}/red.png"))
    assert "file" in refusal(loader, url)


def test_a_missing_picture_is_asked_for_once_and_a_busy_server_again(
    loader: ImageLoader, server: ImageServer
) -> None:
    assert refusal(loader, f"{server.url}/gone.png") == "the server answers 404 Not Found"
    assert server.asked.count("/gone.png") == 1

    fine = send(coloured("red"))
    busy = iter([send(b"", 503)])
    url = server.add("/busy.png", lambda handler: next(busy, fine)(handler))
    assert centre(loader.load(url).picture) == RED
    assert server.asked.count("/busy.png") == 2


def test_nobody_there_is_a_reason(loader: ImageLoader) -> None:
    with image_server() as gone:
        url = f"{gone.url}/red.png"
    assert refusal(loader, url)


def test_what_is_no_image_is_not_quoted(
    loader: ImageLoader, server: ImageServer, tmp_path: Path
) -> None:
    wanted = "it is not an image (PNG, JPEG, WEBP, GIF, BMP, TIFF)"
    page = send(b"<html>secret</html>", Content_Type="image/png")
    assert refusal(loader, server.add("/page.png", page)) == wanted
    secret = tmp_path / "secret"
    secret.write_text("secret: 12345")
    assert refusal(loader, str(secret)) == wanted
    assert refusal(loader, server.add("/empty.png", send(b""))) == "it is empty"


@pytest.mark.parametrize(
    ("start", "name"), [(b"BM", "BMP"), (b"\x89PNG\r\n\x1a\n", "PNG"), (b"II*\0", "TIFF")]
)
def test_what_begins_as_an_image_and_is_none_is_not_quoted_either(start: bytes, name: str) -> None:
    with pytest.raises(ValueError, match=f"^it is a broken {name} image$"):
        decode_image(start + b"secret" * 20)


def test_a_picture_that_is_cut_short_is_broken(loader: ImageLoader, server: ImageServer) -> None:
    whole = encoded(Image.effect_noise((40, 40), 90).convert("RGB"), "JPEG")
    url = server.add("/short.jpg", send(whole[: len(whole) // 2]))
    assert refusal(loader, url) == "it is a broken JPEG image"


def test_references_that_lead_nowhere(loader: ImageLoader, tmp_path: Path) -> None:
    assert refusal(loader, f"{tmp_path}/none.png") == "there is no such file"
    assert refusal(loader, str(tmp_path)) == "Is a directory"
    assert "nosuch" in refusal(loader, "nosuch://a/b.png")
    assert refusal(loader, "data:image/png;base64") == "the data URI has no data"
    assert refusal(loader, "task://input/images/a.png") == "the task's folder has no such file"


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("~nosuchuser/a.png", "RuntimeError: "),
        ("zip://x.png::{folder}/none.zip", "there is no such file"),
        ("zip://x.png::{folder}/broken.zip", "BadZipFile: "),
        ("reference://x", "lists of references, which may lead anywhere, are not read"),
        ("dir://x", "AttributeError: "),
        ("zip://x.png::http://127.0.0.1/a.zip", "HTTP inside of another file system is not read"),
    ],
)
def test_whatever_a_file_system_raises_is_a_reason(
    loader: ImageLoader, tmp_path: Path, reference: str, reason: str
) -> None:
    (tmp_path / "broken.zip").write_bytes(b"no archive")
    assert refusal(loader, reference.format(folder=tmp_path)).startswith(reason)


def test_a_bucket_without_credentials_is_a_reason(
    loader: ImageLoader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("s3fs")
    for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert refusal(loader, "s3://bucket-of-nobody/a.png").startswith("NoCredentialsError: ")


def test_a_list_of_references_is_no_way_around_the_guard(
    loader: ImageLoader, server: ImageServer, tmp_path: Path
) -> None:
    url = server.add("/listed.png", send(coloured("red")))
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps({"a.png": [url]}))
    for reference in (f"reference://a.png::{listed}", f"zip://a.png::reference://a.zip::{listed}"):
        assert "lead anywhere" in refusal(loader, reference)
    assert "/listed.png" not in server.asked


def test_a_scheme_in_capitals_is_the_same_scheme(loader: ImageLoader, server: ImageServer) -> None:
    url = server.add("/capitals.png", send(coloured("red")))
    assert centre(loader.load(url.replace("http", "HTTP")).picture) == RED
    assert refusal(loader, "HTTP://169.254.169.254/a.png") == METADATA


class Odd(AbstractFileSystem):
    """A file system that raises what nobody foresaw, hangs, or cancels its reader."""

    protocol = "odd"
    let_go = threading.Event()
    hanging = threading.Semaphore(0)

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if "hangs" in path:
            self.hanging.release()
            self.let_go.wait(20)
        if "cancelled" in path:
            raise KeyboardInterrupt
        if "long" in path:
            raise LookupError("x" * 470 + " https://me:hunter2hunter2hunter2@host")
        raise LookupError("GET https://me:hunter2@host/a?X-Amz-Signature=5ec4e7")


@pytest.fixture
def odd() -> Iterator[type[Odd]]:
    fsspec.register_implementation("odd", Odd, clobber=True)
    Odd.let_go.clear()
    Odd.hanging = threading.Semaphore(0)
    yield Odd
    Odd.let_go.set()


@pytest.mark.usefixtures("odd")
def test_a_reason_holds_no_credentials(loader: ImageLoader) -> None:
    assert refusal(loader, "odd://a.png") == (
        "LookupError: GET https://me:***@host/a?X-Amz-Signature=***"
    )
    with pytest.raises(ValueError, match="LookupError") as caught:
        loader.load("odd://me:hunter2@host/a.png?token=5ec4e7")
    assert "hunter2" not in str(caught.value)
    assert "5ec4e7" not in str(caught.value)


@pytest.mark.usefixtures("odd")
def test_a_reason_that_is_cut_short_holds_no_half_of_a_password(loader: ImageLoader) -> None:
    assert "hunt" not in refusal(loader, "odd://long.png")


@pytest.mark.usefixtures("odd")
def test_a_file_system_that_hangs_is_left_in_time(hasty: ImageLoader) -> None:
    assert refusal(hasty, "odd://hangs.png") == (
        "it took longer than MLOC_IMAGE_TIMEOUT_S allows: 0.5 s"
    )
    assert not Odd.let_go.is_set()


@pytest.mark.usefixtures("odd")
def test_waiting_for_one_that_hangs_ends_with_the_shard(loader: ImageLoader) -> None:
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(loader.load, "odd://hangs.png")
        assert Odd.hanging.acquire(timeout=10)
        loader.close()
        with pytest.raises(ValueError, match="odd://hangs"):
            loading.result(10)
    assert not Odd.let_go.is_set()


@pytest.mark.usefixtures("odd")
def test_a_dead_mount_takes_some_threads_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MOST_LEFT_BEHIND", 2)
    monkeypatch.setenv("MLOC_IMAGE_TIMEOUT_S", "0.05")
    settings.cache_clear()
    with closing(ImageLoader(of_no_task)) as hasty:
        for _ in range(2):
            assert "MLOC_IMAGE_TIMEOUT_S" in refusal(hasty, "odd://hangs.png")
        assert refusal(hasty, "odd://hangs.png") == "2 reads that were given up still hang"


def test_no_download_begins_once_the_shard_is_over(
    loader: ImageLoader, server: ImageServer
) -> None:
    url = server.add("/over.png", send(coloured("red")))
    loader.close()
    assert refusal(loader, url)
    assert "/over.png" not in server.asked


def test_a_busy_server_is_not_asked_again_once_the_shard_is_over(
    loader: ImageLoader, server: ImageServer
) -> None:
    def busy(handler: BaseHTTPRequestHandler) -> None:
        loader.close()
        send(b"", 503)(handler)

    assert refusal(loader, server.add("/abandoned.png", busy))
    for thread in threading.enumerate():
        if thread.name == THREAD_NAME:
            thread.join(10)
    assert server.asked.count("/abandoned.png") == 1


@pytest.mark.usefixtures("odd")
def test_what_ends_the_reader_is_no_reason(loader: ImageLoader) -> None:
    with pytest.raises(KeyboardInterrupt):
        loader.load("odd://cancelled.png")


def test_a_pipe_is_not_waited_for(loader: ImageLoader, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert refusal(loader, f"{tmp_path}/pipe.png") == "it is no file but a device or a pipe"


METADATA = "169.254.169.254 is link-local: nothing is fetched from there"


def test_link_local_addresses_are_refused_on_each_hop(
    loader: ImageLoader, server: ImageServer
) -> None:
    url = "http://169.254.169.254/latest/meta-data/"
    assert refusal(loader, url) == METADATA
    assert refusal(loader, "http://[::ffff:169.254.169.254]/a.png") == METADATA
    assert refusal(loader, "http://[fe80::1]/a.png").startswith("fe80::1 is link-local")
    assert refusal(loader, server.add("/cloud.png", send(b"", 302, Location=url))) == METADATA


def test_a_name_is_what_it_resolves_to(
    loader: ImageLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo

    def resolve(host: str, *arguments: Any, **options: Any) -> Any:
        return real("169.254.169.254" if host == "harmless.test" else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert refusal(loader, "http://harmless.test/a.png") == METADATA


@pytest.fixture
def public_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[ImageLoader]:
    """Fetches from the internet alone."""
    monkeypatch.setenv("MLOC_IMAGE_PRIVATE_ADDRESSES", "false")
    settings.cache_clear()
    with closing(ImageLoader(of_no_task)) as opened:
        yield opened


PRIVATE = "127.0.0.1 is a private address, and MLOC_IMAGE_PRIVATE_ADDRESSES forbids these"


def test_private_addresses_are_refused_where_the_operator_says_so(
    public_only: ImageLoader, server: ImageServer
) -> None:
    url = server.add("/inside.png", send(coloured("red")))
    assert refusal(public_only, url) == PRIVATE
    assert "/inside.png" not in server.asked


def test_a_name_that_changes_its_address_in_between_leads_to_the_one_that_was_checked(
    loader: ImageLoader, server: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(["127.0.0.1", "169.254.169.254"])
    real = socket.getaddrinfo

    def resolve(host: str, *arguments: Any, **options: Any) -> Any:
        return real(next(answers) if host == "rebound.test" else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    url = server.add("/rebound.png", send(coloured("red"))).replace("127.0.0.1", "rebound.test")
    assert centre(loader.load(url).picture) == RED


def test_rows_of_a_submitted_task_name_no_files_of_the_server(
    tmp_path: Path, server: ImageServer
) -> None:
    inside = tmp_path / "inside.png"
    inside.write_bytes(coloured("red"))
    with Reach("api").applied(), closing(ImageLoader(of_no_task)) as loader:
        for reference in (str(inside), f"file://{inside}", f"simplecache::file://{inside}"):
            assert "API" in refusal(loader, reference)
        url = server.add("/private.png", send(coloured("red")))
        assert "MLOC_API_PRIVATE_ADDRESSES" in refusal(loader, url)


def test_files_of_other_file_systems(loader: ImageLoader) -> None:
    with fsspec.open("memory://images-to-load/red.png", "wb") as file:
        file.write(coloured("red"))
    assert centre(loader.load("memory://images-to-load/red.png").picture) == RED
    assert refusal(loader, "memory://images-to-load/blue.png") == "there is no such file"
    with fsspec.open("memory://images-to-load/large.png", "wb") as file:
        file.write(bytes(LIMIT + 1))
    assert "MLOC_IMAGE_MAX_BYTES" in refusal(loader, "memory://images-to-load/large.png")


def test_a_data_uri_is_held_to_the_same_limit(loader: ImageLoader) -> None:
    small, large = (base64.b64encode(data).decode() for data in (coloured("red"), bytes(LIMIT + 1)))
    assert centre(loader.load(f"data:image/png;base64,{small}").picture) == RED
    with pytest.raises(ValueError, match=r"\(5,\d+ characters\): 4,001 bytes are more than MLOC"):
        loader.load(f"data:image/png;base64,{large}")


@pytest.mark.parametrize("place", ["local", "memory"])
def test_an_image_of_the_tasks_own_folder(place: str, tmp_path: Path) -> None:
    url = str(tmp_path / "results") if place == "local" else "memory://images-of-a-task"
    store = open_store(url)
    store.task("t").write_bytes("input/images/red.png", coloured("red"))
    store.task("other").write_bytes("input/images/blue.png", coloured("blue"))
    with closing(ImageLoader(store.task("t").read_bytes)) as loader:
        assert centre(loader.load("task://input/images/red.png").picture) == RED
        gone = refusal(loader, "task://input/images/gone.png")
        assert gone == "the task's folder has no such file"
        assert refusal(loader, "task://../other/input/images/blue.png")


@pytest.mark.parametrize(
    ("side", "reason"),
    [
        (9_000, "9,000 × 9,000 pixels are more than the 80,000,000 that are decoded"),
        (10_000, "it has more pixels than the 80,000,000 that are decoded"),
        (30_000, "it has more pixels than the 80,000,000 that are decoded"),
    ],
)
def test_a_picture_that_would_fill_the_memory_is_not_decoded(side: int, reason: str) -> None:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(b"\0"))
    with pytest.raises(ValueError, match=f"^{reason}$"):
        decode_image(bomb + _chunk(b"IEND", b""))


def test_a_picture_stands_upright() -> None:
    lying = Image.new("RGB", (40, 20), COLOURS["blue"])
    lying.paste(square("red", 20), (0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: 90° clockwise puts it right
    picture = decode_image(encoded(lying, "JPEG", exif=exif, quality=95))
    assert picture.size == (20, 40)
    top, bottom = picture.getpixel((10, 8)), picture.getpixel((10, 32))
    assert top[0] > 150 > top[2]
    assert bottom[2] > 150 > bottom[0]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(mode: str) -> None:
    clear = Image.new("RGBA", (16, 16), (200, 0, 0, 0))
    clear.paste((0, 0, 0, 255), (0, 0, 8, 16))
    if mode == "P":
        data = encoded(clear.convert("P"), transparency=clear.convert("P").getpixel((12, 8)))
    else:
        data = encoded(clear.convert(mode))
    picture = decode_image(data)
    assert picture.mode == "RGB"
    assert picture.getpixel((2, 8)) == (0, 0, 0)
    assert picture.getpixel((12, 8)) == (255, 255, 255)


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
