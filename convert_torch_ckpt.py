"""Imports PyTorch checkpoints into a pool of models, without PyTorch.

    python convert_torch_ckpt.py RELEASED_FOLDER --out POOL
    python convert_torch_ckpt.py FILE.pth --out POOL --name NAME [--sources a,b,c --top-k 5 ...]

.pth, .pt, Lightning's .ckpt and .safetensors, and the usual wrappers and prefixes within them.
Files are read by a restricted reader that builds tensors and plain containers only.
"""

from steph_jax import interrupts

if __name__ == "__main__":
    interrupts.install()

    from steph_jax import convert

    interrupts.leave(convert.main())
