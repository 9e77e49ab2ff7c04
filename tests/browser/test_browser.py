"""The browser that other tests here use sees what it is to see."""

from __future__ import annotations

WRONG = """<!doctype html><title>a</title>
<link rel=stylesheet href="http://nowhere.invalid/a.css"><img src="http://192.0.2.1/a.png">
<script>console.log("well"); console.error("worse"); throw new Error("bad")</script>
"""
RIGHT = "<!doctype html><title>a</title><img src='data:,'><script>var b = 1</script>"


def test_what_a_page_may_not_do_is_seen(page, faults, tmp_path):
    (tmp_path / "page.html").write_text(WRONG)
    page.goto((tmp_path / "page.html").as_uri())
    addresses = ["asked for: http://192.0.2.1/a.png", "asked for: http://nowhere.invalid/a.css"]
    seen = [fault for fault in faults if "ERR_FAILED" not in fault]  # the console's word for what was not let out
    assert sorted(seen) == [*addresses, "console: worse", "error: bad"]
    faults.clear()


def test_a_page_that_does_nothing_wrong_has_no_faults(page, tmp_path):
    (tmp_path / "page.html").write_text(RIGHT)
    page.goto((tmp_path / "page.html").as_uri())
    assert page.evaluate("b") == 1
