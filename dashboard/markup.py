"""HTML from values: whatever comes from a store or a model is escaped here, and nowhere else is markup put together."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


Content = str | Markup | Iterable["Content"] | None


def tag(name: str, *content: Content, **attributes: object) -> Markup:
    """An element. `_` in attribute names stands for `-`, `cls` for class; None and False leave an attribute out."""
    parts = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = "class" if key == "cls" else key.replace("_", "-")
        parts.append(attribute if value is True else f'{attribute}="{escape(str(value))}"')
    start = f"<{' '.join(parts)}>"
    return Markup(start if name in ("input", "br") else f"{start}{join(*content)}</{name}>")


def join(*content: Content) -> Markup:
    """Pieces one after the other; plain text is escaped."""
    found: list[str] = []
    for piece in content:
        if piece is None:
            continue
        if isinstance(piece, Markup):
            found.append(piece)
        elif isinstance(piece, str):
            found.append(escape(piece))
        else:
            found.append(join(*piece))
    return Markup("".join(found))


def note(title: str, text: str, kind: str = "info") -> Markup:
    """A message on the page: what is the matter, and what to do next."""
    role = "alert" if kind == "error" else "status"
    return tag("div", tag("strong", title), tag("p", text), cls=f"v-note v-{kind}", role=role)


def section(title: str, explanation: str, *content: Content) -> Markup:
    """A figure or table with its heading and what it shows, in which unit."""
    return tag(
        "section", tag("h3", title), tag("p", explanation, cls="v-sub"), *content, cls="v-card", aria_label=title
    )


PICK = """
let last = null;
const pick = (event) => {
  const target = event.target.closest('[data-pick]');
  if (!target || !element.contains(target)) return;
  event.preventDefault();
  last = target.dataset.pick;
  trigger('click', {pick: target.dataset.pick});
};
element.addEventListener('click', pick);
element.addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' && event.key !== ' ') return;
  if (event.target.tagName === 'BUTTON') return;
  pick(event);
});
watch('value', () => {
  if (last === null || document.activeElement !== document.body) return;
  const again = element.querySelector(`[data-pick="${CSS.escape(last)}"]`);
  if (again) again.focus({preventScroll: true});
});
"""
"""JavaScript of a `gr.HTML`: what has `data-pick` triggers its click event with that value, also by keyboard.

What was picked gets the focus back when the markup is drawn anew, so that the keyboard stays where it was.
"""
