"""The pages' own small modules, run in Chromium: Markdown to nodes, and orders with ties."""

import random

import pytest

pytestmark = pytest.mark.slow

RENDER = """async (texts) => {
  const { markdown } = await import("/static/markdown.js");
  return texts.map((text) => {
    const box = document.createElement("div");
    box.append(markdown(text));
    for (const one of box.querySelectorAll(".code-head")) one.remove();
    return box.innerHTML;
  });
}"""
LINK = 'target="_blank" rel="noopener noreferrer nofollow"'
CASES = {
    "# One\n### Two": "<h3>One</h3><h4>Two</h4>",
    "a *b* **c** ***d*** ~~e~~": (
        "<p>a <em>b</em> <strong>c</strong> <strong><em>d</em></strong> <del>e</del></p>"
    ),
    "snake_case_name and 2*3*4": "<p>snake_case_name and 2*3*4</p>",
    "`<b>` and ``a`b``": "<p><code>&lt;b&gt;</code> and <code>a`b</code></p>",
    "one\ntwo\n\nthree": "<p>one<br>two</p><p>three</p>",
    "- a\n- b\n  - c\n- d": "<ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul>",
    "3. a\n4. b\n\ntext": '<ol start="3"><li>a</li><li>b</li></ol><p>text</p>',
    "1. a\n\n2. b": "<ol><li>a</li><li>b</li></ol>",
    "> a\n> - b": "<blockquote><p>a</p><ul><li>b</li></ul></blockquote>",
    "```js\n<i>&\n```\nx": (
        '<div class="code"><pre tabindex="0"><code>&lt;i&gt;&amp;</code></pre></div><p>x</p>'
    ),
    "```\nnot closed": '<div class="code"><pre tabindex="0"><code>not closed</code></pre></div>',
    "---": "<hr>",
    "[a](https://x.org/?q=1&r=2)": f'<p><a href="https://x.org/?q=1&amp;r=2" {LINK}>a</a></p>',
    "see http://x.org/a.": f'<p>see <a href="http://x.org/a" {LINK}>http://x.org/a</a>.</p>',
    "[a](javascript:alert(1)) [b](data:text/html,x) [c](/v1/x)": (
        "<p>[a](javascript:alert(1)) [b](data:text/html,x) [c](/v1/x)</p>"
    ),
    "![a](https://x.org/i.png)": f'<p>!<a href="https://x.org/i.png" {LINK}>a</a></p>',
    "| a | b |\n|---|---|\n| 1 | *2* |": (
        '<div class="wide" tabindex="0"><table><thead><tr><th>a</th><th>b</th></tr></thead>'
        "<tbody><tr><td>1</td><td><em>2</em></td></tr></tbody></table></div>"
    ),
    "\\*not\\* <u>x</u> &lt;": "<p>*not* &lt;u&gt;x&lt;/u&gt; &amp;lt;</p>",
    "": "",
}


@pytest.fixture
async def page(visit):
    visitor = await visit("complete")
    yield await visitor.open()
    visitor.well()


async def test_markdown_becomes_these_nodes(page):
    made = await page.evaluate(RENDER, list(CASES))
    for text, html in zip(CASES, made, strict=True):
        assert html == CASES[text], text


async def test_whatever_is_written_only_known_elements_come_of_it(page):
    rng = random.Random(5)
    parts = [
        "*",
        "_",
        "`",
        "```\n",
        "\n",
        "\n\n",
        "- ",
        "  ",
        "1. ",
        "> ",
        "#",
        "|",
        "---",
        "[",
        "]",
    ]
    parts += [
        "(",
        ")",
        "https://a.b",
        "javascript:x",
        "<script>",
        "<img onerror=x>",
        "&",
        "\\",
        "w",
    ]
    texts = ["".join(rng.choices(parts, k=rng.randint(1, 60))) for _ in range(400)]
    texts += [piece * 4000 for piece in ("`a``", "**a ", "_a ", "[a](", "> ", "- ", "|")]
    found = await page.evaluate(
        """async (texts) => {
          const { markdown } = await import("/static/markdown.js");
          const seen = { tags: new Set(), attributes: new Set(), schemes: new Set() };
          for (const text of texts) {
            for (const node of markdown(text).querySelectorAll("*")) {
              if (node.closest(".code-head")) continue;
              seen.tags.add(node.localName);
              for (const { name } of node.attributes) seen.attributes.add(name);
              if (node.href) seen.schemes.add(new URL(node.href).protocol);
            }
          }
          return Object.fromEntries(Object.entries(seen).map(([name, set]) => [name, [...set]]));
        }""",
        texts,
    )
    tags = "p ul ol li em strong del code pre div br hr a blockquote table thead tbody tr th td"
    assert set(found["tags"]) <= set(tags.split()) | {"h3", "h4", "h5", "h6"}
    assert {"ul", "code", "a", "blockquote"} <= set(found["tags"])
    assert set(found["attributes"]) <= {"class", "tabindex", "start", "href", "target", "rel"}
    assert found["schemes"] == ["https:"]


async def test_every_move_keeps_an_order_of_all_answers(page):
    broken = await page.evaluate(
        """async (seed) => {
          const s = await import("/static/label_state.js");
          const random = (n) => {
            seed = (seed * 48271) % 2147483647;
            return Math.floor((seed / 2147483647) * n);
          };
          let ranking = [["a"], ["b", "c"], ["d"], ["e"]];
          const shapes = new Set();
          for (let step = 0; step < 8000; step += 1) {
            const id = "abcde"[random(5)], at = random(ranking.length);
            const before = JSON.stringify(ranking);
            const next = [() => s.moved(ranking, id, -1), () => s.moved(ranking, id, 1),
              () => s.toggledTie(ranking, id), () => s.placeAlone(ranking, id, at),
              () => s.placeTied(ranking, id, at)][random(5)]();
            if (JSON.stringify(ranking) !== before) return ["changed in place", before];
            const all = next.flat().sort().join("");
            if (all !== "abcde" || next.some((rank) => !rank.length)) return [before, next];
            ranking = next;
            shapes.add(ranking.map((rank) => rank.length).join());
          }
          return shapes.size;
        }""",
        7,
    )
    assert broken == 16  # all ways to cut five answers into ranks were met


async def test_moves_do_what_they_say(page):
    said = await page.evaluate(
        """async () => {
          const s = await import("/static/label_state.js");
          const r = [["a"], ["b", "c"], ["d"]];
          return [s.moved(r, "a", -1), s.moved(r, "a", 1), s.moved(r, "b", -1), s.moved(r, "b", 1),
            s.moved(r, "d", -1), s.moved(r, "d", 1), s.toggledTie(r, "a"), s.toggledTie(r, "c"),
            s.toggledTie(r, "d"), s.placeAlone(r, "d", 0), s.placeAlone(r, "b", 3),
            s.placeTied(r, "a", 2)]
            .map((ranks) => ranks.map((rank) => rank.join("")).join(" "));
        }"""
    )
    assert said == [
        *("a bc d", "bc a d", "a b c d", "a c b d", "a d bc", "a bc d"),
        *("bca d", "a b c d", "a bcd", "d a bc", "a c d b", "bc da"),
    ]
