"""The page in a real browser, as on a phone and in a wide window. Skipped without Chromium."""

import json
import re
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from codream_secure.report.page import write_page

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium: as root `.ci/run` installs it"
)

# A frame has the width that it is given; a window has a least one.
FRAME = """<!doctype html><body style="margin: 0"><script>
const frame = document.createElement("iframe");
frame.style = "border: 0; width: WIDTHpx; height: 3000px";
frame.src = "page.html";
frame.onload = () => {
  const root = frame.contentDocument.documentElement;
  const wide = [...root.querySelectorAll("body, body *")].filter(
    (e) => e.getBoundingClientRect().right > root.clientWidth + 1 && !e.closest(".scroll, svg")
  );
  const found = {client: root.clientWidth, scroll: root.scrollWidth,
    wide: wide.map((e) => e.tagName + "." + e.className)};
  document.body.append(Object.assign(
    document.createElement("pre"), {id: "found", textContent: JSON.stringify(found)}));
};
document.body.append(frame);
</script></body>"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def look(tmp_path):
    """Return a function that shows page.html so wide and gives (measures, console, picture)."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def browse(width, *arguments):
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += ["--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}"]
        command += ["--virtual-time-budget=5000", f"--window-size={max(width, 500)},3000"]
        url = f"http://127.0.0.1:{server.server_port}/frame.html"
        return subprocess.run(
            [*command, *arguments, url], capture_output=True, text=True, timeout=120, check=True
        )

    def show(width):
        (tmp_path / "frame.html").write_text(FRAME.replace("WIDTH", str(width)))
        picture = tmp_path / f"{width}.png"
        browse(width, f"--screenshot={picture}")
        result = browse(width, "--dump-dom")
        found = re.search(r'<pre id="found">(.*?)</pre>', result.stdout)
        console = [
            line
            for line in result.stderr.splitlines()
            if "CONSOLE" in line and "favicon.ico" not in line
        ]
        return json.loads(found[1]), console, picture

    yield show
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def folders(write_run):
    """Runs with everything that can be too wide."""
    long = "a-method-with-a-name-that-never-ends-" * 4
    return [
        write_run("a", independent=0.8, epsilon=8.0, pictures=True, config={"dp_eps": 8.0}),
        write_run("b", method="fedavg", config={"note": "x" * 300}),
        write_run("c", method=long, config={"partition": "dirichlet-labels:0.5" * 3}),
        write_run("d", method="independent", sent=0),
    ]


@pytest.mark.parametrize(
    ("width", "several"),
    [
        (390, True),
        (1280, False),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in ((390, False), (1280, True))),
    ],
)
def test_nothing_sticks_out_and_nothing_is_fetched(look, folders, tmp_path, width, several):
    chosen = folders if several else folders[:1]
    write_page(chosen, tmp_path / "page.html", f"codream-secure report {'folder ' * 80}")
    found, console, picture = look(width)
    assert console == []
    assert found == {"client": width, "scroll": width, "wide": []}
    with Image.open(picture) as shown:
        colours = shown.convert("RGB").crop((0, 0, width, 2000)).getcolors(1_000_000)
    assert len(colours) > 50


def test_a_page_that_is_too_wide_or_fetches_is_noticed(look, tmp_path):
    (tmp_path / "page.html").write_text(
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'">'
        '<script src="x.js"></script><table width="900"><tr><td>wide</td></tr></table>'
    )
    found, console, _ = look(390)
    assert found["scroll"] > 390
    assert found["wide"]
    assert console
