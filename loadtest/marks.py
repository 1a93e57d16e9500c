"""Pages that programs write into, between two marks that stay where they are."""

from __future__ import annotations


def put(text: str, name: str, content: str) -> str:
    """The page with `content` between `<!-- name -->` and `<!-- /name -->`. ValueError where the marks are missing."""
    opens, closes = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, mark, rest = text.partition(opens)
    _, end, after = rest.partition(closes)
    if not mark or not end:
        raise ValueError(f"the page has no marks {opens.strip()} and {closes}")
    return f"{before}{opens}{content}\n{closes}{after}"
