"""Make the parts of pages anew that stand between comments, from code and records.

python -m tools.pages
"""

from tools.pages import made

if __name__ == "__main__":
    for page in made.pages():
        text = made.filled(page)
        if text != page.read_text(encoding="utf-8"):
            page.write_text(text, encoding="utf-8")
            print(page.relative_to(made.DOCS.parent))
