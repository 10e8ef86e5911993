"""The page to try models on: over plain HTTP, and in a headless browser where there is one."""

import base64
import http.client
import io
import json
import re
import subprocess
import sys
import threading

import browser_case
import cv2
import numpy as np
import pytest
import reading_case as case
from PIL import Image

from openrec.demo_web.server import DemoServer, is_loopback
from openrec.demo_web.service import Service
from openrec.errors import ConfigError, DataError
from openrec.recognizer import load

MAMBA = {
    "name": "SVTRv2Mamba", "max_sz": [32, 128], "use_pos_embed": False, "dims": [16, 16, 32], "depths": [1, 1, 1],
    "num_heads": [1, 1, 1], "head_dim": 16, "mixer": [["Conv"], ["Mamba"], ["Mamba"]], "feat2d": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two runs with a checkpoint each, and three pictures."""
    folder = tmp_path_factory.mktemp("page")
    for name, seed in (("one", 0), ("two", 3)):
        (folder / name).mkdir()
        case.checkpoint(folder / name / "best.pth", seed=seed)
    case.write_pictures(folder / "crops", 3)
    return folder


@pytest.fixture(scope="module")
def server(place):
    models = [load(place / name / "best.pth", device="cpu") for name in ("one", "two")]
    with DemoServer(Service(models, [place / "crops"]), port=0, max_bytes=2 * 2**20) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield running
        running.shutdown()


def ask(server, method, path, body=None, headers=None):
    """``(status, headers, body)``; JSON is parsed."""
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=60)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    data, kind = answer.read(), answer.headers.get("Content-Type", "")
    connection.close()
    return answer.status, answer.headers, json.loads(data) if kind == "application/json" else data


def png(number=0, width=96, height=32):
    return cv2.imencode(".png", case.picture(number, width, height))[1].tobytes()


def huge(kind="PNG"):
    """A small file that holds 50 megapixels."""
    out = io.BytesIO()
    Image.new("L", (10000, 5000), 128).save(out, kind)
    return out.getvalue()


# ---- over HTTP ---------------------------------------------------------------------------------------


def test_the_page_needs_nothing_else(server):
    status, headers, page = ask(server, "GET", "/")
    assert status == 200 and headers["Content-Type"].startswith("text/html")
    page = page.decode()
    assert not re.search(r"""(src|href)\s*=\s*["']|@import|url\(|https?://""", page), "something from elsewhere"
    nonce = re.search(r"script-src 'nonce-([^']+)'", headers["Content-Security-Policy"])[1]
    assert page.count(f'<script nonce="{nonce}">') == page.count("<script") == 1
    assert "default-src 'none'" in headers["Content-Security-Policy"] and "{{" not in page
    assert ask(server, "HEAD", "/")[2] == b""


def test_models_and_examples(server):
    status, _, about = ask(server, "GET", "/api/models")
    assert status == 200 and [m["name"] for m in about["models"]] == ["one", "two"]
    assert about["models"][0]["parts"] == "SVTRv2LNConvTwo33 + RCTCDecoder" and about["models"][0]["characters"] == 36
    assert about["examples"] == 3 and about["max_pixels"] == 25_000_000
    status, headers, data = ask(server, "GET", "/api/examples/1")
    assert status == 200 and headers["Content-Type"] == "image/png" and data.startswith(b"\x89PNG")


def test_each_model_reads_like_the_recogniser(server, place):
    recognizers, texts = server.service.recognizers, set()
    for number in (0, 1):
        status, _, result = ask(server, "POST", f"/api/read/{number}", png(1))
        (word,) = recognizers[number]([png(1)])
        assert status == 200 and result["text"] == word.text and result["score"] == pytest.approx(word.score)
        assert [c["char"] for c in result["chars"]] == list(word.text) and result["size"] == [96, 32]
        assert [c["score"] for c in result["chars"]] == pytest.approx(word.char_scores, abs=1e-3)
        assert result["seen"].startswith("data:image/png;base64,") and result["look"] and result["chars"][0]["look"]
        assert "Column by column" in result["details"] and "RCTC" in result["source"]
        texts.add(word.text)
    assert len(texts) == 2


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "file is empty"),
        (b"no picture at all", "cannot be decoded"),
        (png()[:70], "image"),
        (huge(), "50.0 megapixels"),
        (huge("JPEG"), "50.0 megapixels"),
    ],
    ids=["empty", "text", "cut", "50 MP PNG", "50 MP JPEG"],
)
def test_pictures_that_cannot_be_read_get_a_sentence(server, body, told):
    status, _, result = ask(server, "POST", "/api/read/0", body)
    assert status == 422 and result["error"].startswith("This picture could not be read: ") and told in result["error"]
    assert ask(server, "POST", "/api/read/0", png())[0] == 200  # and the next one is read


def test_large_bodies_are_refused_with_an_answer(server):
    status, headers, result = ask(server, "POST", "/api/read/0", b"x" * (3 * 2**20))
    assert status == 413 and result["error"] == "This file has 3 MiB; at most 2 are taken."
    assert headers["Connection"] == "close"
    status, _, result = ask(server, "POST", "/api/read/0", iter([b"abc"]), {"Transfer-Encoding": "chunked"})
    assert status == 411 and "length" in result["error"]


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/nothing", {}, 404),
        ("GET", "/../../etc/passwd", {}, 404),
        ("GET", "/api/examples/3", {}, 404),
        ("GET", "/api/examples/-1", {}, 404),
        ("GET", "/api/examples/../x", {}, 404),
        ("POST", "/", {}, 404),
        ("POST", "/api/read/2", {}, 422),
        ("POST", "/api/read/x", {}, 422),
        ("PUT", "/api/read/0", {}, 501),
        ("GET", "/", {"Host": "attacker.example"}, 403),
        ("GET", "/", {"Host": "attacker.example:80"}, 403),
        ("GET", "/api/models", {"Host": "localhost:1"}, 200),
        ("GET", "/api/models", {"Origin": "http://attacker.example"}, 403),
        ("POST", "/api/read/0", {"Origin": "null"}, 403),
    ],
)
def test_addresses_and_callers(server, method, path, headers, status):
    assert ask(server, method, path, png() if method == "POST" else None, headers)[0] == status


def test_several_at_once(server):
    results = []

    def one(number):
        results.append((number, ask(server, "POST", "/api/read/0", png(number))[2]["text"]))

    threads = [threading.Thread(target=one, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    alone = {n: w.text for n, w in enumerate(server.service.recognizers[0]([png(n) for n in range(12)]))}
    assert dict(results) == alone


def test_a_fault_of_the_program_is_no_silence(server, monkeypatch, caplog):
    monkeypatch.setattr(Service, "read", lambda *_: 1 / 0)
    status, _, result = ask(server, "POST", "/api/read/0", png())
    assert status == 500 and "fault" in result["error"] and "ZeroDivisionError" in caplog.text


def test_nothing_is_written(server, place):
    """Every file opened while a picture is read is opened for reading."""
    written, watching = [], [True]

    def watch(event, arguments):
        if watching and event == "open" and isinstance(arguments[0], (str, bytes)):
            mode, flags = arguments[1] or "", arguments[2] or 0
            if set(mode) & set("wax+") or flags & 3:  # O_WRONLY or O_RDWR
                written.append(arguments[0])
        elif watching and event in (
            "os.mkdir",
            "os.rename",
            "os.link",
            "os.symlink",
            "tempfile.mkstemp",
            "tempfile.mkdtemp",
        ):
            written.append((event, arguments))

    sys.addaudithook(watch)  # cannot be taken off again, so it is told to stop
    before = {p: p.stat().st_mtime_ns for p in place.rglob("*")}
    try:
        for body in (png(2), b"broken", huge()):
            ask(server, "POST", "/api/read/0", body)
        ask(server, "GET", "/api/examples/0")
    finally:
        watching.clear()
    assert not written
    assert before == {p: p.stat().st_mtime_ns for p in place.rglob("*")}


def test_sampling_points_are_drawn(tmp_path):
    case.checkpoint(tmp_path / "m.pth", case.config(Architecture__Encoder=MAMBA))
    result = Service([load(tmp_path / "m.pth", device="cpu")]).read(0, png(4))
    assert "Sampling points" in result["details"] and "<circle" in result["details"]


def test_loopback_unless_told_otherwise(server, place):
    assert server.server_address[0] == "127.0.0.1" and server.local_only
    assert [is_loopback(h) for h in ("127.0.0.1", "::1", "localhost", "127.8.8.8")] == [True] * 4
    assert not any(map(is_loopback, ("0.0.0.0", "192.168.1.2", "example.org", "", "localhost.example.org")))
    with pytest.raises(ConfigError, match="Try --port 0"):
        DemoServer(server.service, port=server.server_address[1])
    with pytest.raises(ConfigError, match="Expected an address of this machine after --host"):
        DemoServer(server.service, "no-such-host.invalid", 0)
    with pytest.raises(ConfigError, match="needs at least one model"):
        Service([])
    with pytest.raises(DataError, match=r'--images: "nowhere\.png" not found'):
        Service(server.service.recognizers, ["nowhere.png"])


def test_tool_listens_and_ends(place):
    command = [
        sys.executable,
        case.ROOT / "tools/demo_web.py",
        "--model",
        place / "one",
        "--port",
        "0",
        "--device",
        "cpu",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            found = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
            assert found, line + process.stderr.read()
            connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=30)
            connection.request("GET", "/api/models")
            assert json.load(connection.getresponse())["models"][0]["name"] == "one"
            connection.close()
            process.send_signal(2)
            assert process.wait(30) == 0
        finally:
            process.kill()  # whatever happened: leaving the block waits for its end


# ---- in a browser -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    if not browser_case.CHROMIUM or not browser_case.DRIVER:
        pytest.skip("no chromium and chromedriver on this machine (Debian: apt-get install chromium chromium-driver)")
    with browser_case.Browser() as running:
        yield running


@pytest.fixture
def page(browser, server):
    browser.open(server.url)
    browser.wait(lambda: browser.run("return document.body.dataset.ready"), "the page")
    return browser


def count(page, selector):
    return page.run("return document.querySelectorAll(arguments[0]).length", selector)


def texts(page):
    return page.run("return [...document.querySelectorAll('.text')].map(e => e.textContent)")


def test_choose_read_and_look(page, server, place, tmp_path):
    page.choose("#file", place / "crops" / "000.png")
    page.wait(lambda: count(page, ".text") == 2, "both texts")
    expected = [r(place / "crops" / "000.png")[0].text for r in server.service.recognizers]
    assert texts(page) == expected
    assert count(page, ".differ") == int(expected[0] != expected[1])
    sizes = "return [...document.querySelectorAll('.look')].map(e => e.complete ? e.naturalWidth : 0)"
    page.wait(lambda: all(page.run(sizes)), "the pictures of what was looked at")
    assert len(page.run(sizes)) == 2
    # one character alone
    before = page.run("return document.querySelector('.look').src")
    page.run("document.querySelector('.text span').focus()")
    assert page.run("return document.querySelector('.look').src") != before
    # the details, drawn
    page.run("document.querySelector('details').open = true")
    inside = "return document.querySelector('details div').shadowRoot?.querySelectorAll('rect').length"
    assert page.wait(lambda: page.run(inside), "the columns") >= 8
    page.screenshot(tmp_path / "page.png")
    assert np.asarray(Image.open(tmp_path / "page.png").convert("L")).std() > 5


def test_a_part_of_a_picture(page, server, place):
    page.choose("#file", place / "crops" / "002.png")
    page.wait(lambda: count(page, ".text") == 2, "both texts")
    page.drag(".photo img", (0.0, 0.1), (0.5, 0.9))
    page.wait(lambda: count(page, ".photo i") == 1 and count(page, ".text") == 2, "the part's texts")
    assert page.run("return document.querySelector('.about button:last-child').hidden") is False


def test_paste_drop_and_examples(page, server, place):
    script = """
    const bytes = Uint8Array.from(atob(arguments[0]), c => c.charCodeAt(0)), data = new DataTransfer();
    data.items.add(new File([bytes], "shot.png", {type: "image/png"}));
    const how = {bubbles: true, cancelable: true};
    const event = arguments[1] === "paste" ? new ClipboardEvent("paste", {clipboardData: data, ...how})
      : new DragEvent("drop", {dataTransfer: data, ...how});
    document.dispatchEvent(event);
    """
    data = base64.b64encode(png(7)).decode()
    for number, kind in enumerate(("paste", "drop"), 1):
        page.run(script, data, kind)
        page.wait(lambda n=number: count(page, ".text") == 2 * n, kind)
    page.run("document.querySelector('#examples button').click()")
    page.wait(lambda: count(page, ".text") == 6, "the example")
    assert texts(page)[0] == server.service.recognizers[0](place / "crops" / "000.png")[0].text
    assert texts(page)[2:4] == texts(page)[4:6] == [r([png(7)])[0].text for r in server.service.recognizers]
    page.run("document.querySelector('#clear').click()")
    assert count(page, ".card") == 0


def test_polite_in_the_browser(page, tmp_path):
    """A broken picture, one of 50 megapixels and a file that is too long: a sentence each, and the page goes on."""
    (tmp_path / "broken.png").write_bytes(png()[:70])
    (tmp_path / "huge.png").write_bytes(huge())
    (tmp_path / "long.bmp").write_bytes(b"BM" + bytes(3 * 2**20))
    (tmp_path / "good.png").write_bytes(png(1))
    page.choose("#file", *(tmp_path / n for n in ("broken.png", "huge.png", "long.bmp", "good.png")))
    page.wait(lambda: count(page, ".text") == 2 and count(page, ".error") == 6, "all answers")
    told = page.run("return [...document.querySelectorAll('.error')].map(e => e.textContent)")
    assert "could not be read: image" in told[0] and "50.0 megapixels" in told[2] and "3 MiB" not in told[4]
    assert told[4] == "This file has 4 MiB; at most 2 are taken."


def test_nothing_comes_from_elsewhere(page, server):
    """Every address that the browser loaded is the server's own."""
    loaded = page.run("return performance.getEntriesByType('resource').map(e => e.name)")
    assert loaded and all(address.startswith((server.url, "blob:", "data:")) for address in loaded)
