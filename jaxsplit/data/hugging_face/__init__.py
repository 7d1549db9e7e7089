"""Data sets of Hugging Face's library `datasets`, read from this machine.

`data.name='hf:NAME_OR_PATH'` is looked for as a folder that `save_to_disk` wrote, first
<data.dir>/PATH and then PATH, and then as a set NAME in the cache that `load_dataset` fills. The
Arrow files are memory-mapped and read at random; images stay encoded until they are needed, and the
decoder is that of all other sources. Only `data.download` uses the network.
"""

from jaxsplit.data.hugging_face.describe import Description, counts, describe, open_split
from jaxsplit.data.hugging_face.place import Found, find, is_named

__all__ = ["Description", "Found", "counts", "describe", "find", "is_named", "open_split"]
