"""How results are shown: the one shell of HTML pages, the one chart engine, and numbers as people write them.

Nothing here knows what is reported on; what imports it brings the contents.
"""
