"""Write the JSON schemas: `python -m consistency.config`."""

from .resolve import SCHEMAS, schemas

for file, text in schemas().items():
    (SCHEMAS / file).write_text(text, encoding="utf-8")
    print(SCHEMAS / file)
