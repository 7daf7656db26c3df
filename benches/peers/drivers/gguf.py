"""Convert a Hugging Face folder to GGUF with llama.cpp's own converter. `python -m benches.peers.drivers.gguf`

Arguments: the sources of llama.cpp, the folder, the file to write, its type ("bf16" or "f16").
The converter knows tokenizers by a hash of what they do; ours is unknown to it and is named here instead.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path
from typing import Any

PRE_TOKENIZER = "qwen2"


def main(argv: list[str]) -> None:
    sources, folder, target, kind = Path(argv[0]), argv[1], argv[2], argv[3]
    sys.path[:0] = [str(sources), str(sources / "gguf-py")]
    base: Any = importlib.import_module("conversion.base")
    base.TextModel.get_vocab_base_pre = lambda _self, _tokenizer: PRE_TOKENIZER
    script = sources / "convert_hf_to_gguf.py"
    sys.argv = [script.name, folder, "--outtype", kind, "--outfile", target]
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
