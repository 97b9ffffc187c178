"""A Markdown text as a page for the browser: self-contained but for the pictures and pages beside it."""

import re

from perpixel.report.theme import FRAME, GRID, LINES, SMALL_PRINT

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; max-width: 1080px; padding: 1.2rem 1.25rem 3rem; background: #fff; color: #1d2126;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  overflow-wrap: break-word; }}
h1 {{ font-size: 1.55rem; line-height: 1.25; margin: 1rem 0 .5rem; }}
h2 {{ font-size: 1.15rem; margin: 2.4rem 0 .5rem; padding-top: .7rem; border-top: 1px solid {frame}; }}
p, ul {{ max-width: 46rem; margin: .5rem 0; }}
ul {{ padding-left: 1.3rem; }}
li {{ margin: .25rem 0; }}
a {{ color: {link}; }}
blockquote {{ margin: .9rem 0; padding: .55rem .9rem; max-width: 46rem; border-left: 4px solid {accent};
  background: #faf7f5; }}
blockquote p {{ margin: .2rem 0; font-size: 1.06rem; }}
table {{ display: block; overflow-x: auto; border-collapse: collapse; margin: .9rem 0; font-size: .9rem;
  font-variant-numeric: tabular-nums; }}
th, td {{ padding: .32rem .55rem; border-bottom: 1px solid {grid}; text-align: left; vertical-align: top; }}
th {{ color: {soft}; border-bottom-color: {frame}; }}
th:first-child, td:first-child {{ padding-left: 0; }}
td {{ min-width: 3.2rem; }}
td[style*="right"] {{ white-space: nowrap; }}
p:has(img) {{ max-width: none; }}
body > p:first-child {{ font-size: 1.05rem; max-width: none; }}
img {{ display: block; max-width: 100%; height: auto; margin: .9rem 0 .3rem; border: 1px solid {grid}; }}
em {{ color: {soft}; }}
code {{ font-size: .9em; overflow-wrap: anywhere; }}
@media (max-width: 640px) {{
  body {{ padding: .7rem .8rem 2rem; font-size: 15px; }}
  h1 {{ font-size: 1.3rem; }}
}}
</style>
</head>
<body>
{body}</body>
</html>
"""


def summary_page(text: str) -> str:
    """The HTML of a Markdown text with tables; its first heading is the title of the page.

    Raw HTML in the text is shown, not obeyed; no scripts, nothing from the network. Links and pictures stay as they
    are given: relative ones lead to files beside the page. Needs markdown-it-py.
    """
    try:
        from markdown_it import MarkdownIt
    except ImportError as error:
        raise ImportError('summary_page needs markdown-it-py: pip install "perpixel[recipes]"') from error
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    heading = re.search(r"<h1>(.*?)</h1>", body)
    title = re.sub(r"<[^>]+>", "", heading[1]) if heading else "summary"
    return _PAGE.format(
        title=title, body=body, frame=FRAME, grid=GRID, soft=SMALL_PRINT, accent=LINES[1], link=LINES[5]
    )
