"""Files for other tools: selections as rows, counts, and loads in the form placement tools read.

`Choice.of` says what of a trace; `rows`, `counts` and `placement` make the content, which `files`
writes whole or not at all.
"""
