from __future__ import annotations

import pytest

from loadtest.marks import put

PAGE = "top\n<!-- figures -->\nstale\n<!-- /figures -->\nend\n"


def test_what_is_between_the_marks_is_replaced_and_all_else_stays() -> None:
    once = put(PAGE, "figures", "fresh\nlines")
    assert once == "top\n<!-- figures -->\nfresh\nlines\n<!-- /figures -->\nend\n"
    assert put(once, "figures", "fresh\nlines") == once


@pytest.mark.parametrize(
    "page", ["nothing", PAGE.replace("<!-- /figures -->", ""), PAGE.replace("<!-- figures -->", "")]
)
def test_a_page_without_both_marks_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match="has no marks"):
        put(page, "figures", "fresh")
