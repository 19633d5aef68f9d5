"""What people do today: timm, hooks, a DataLoader, numpy.save. One process, the best a careful notebook does.

python benchmarks/plain.py CHECKPOINT IMAGES OUTPUT --batch 16
"""

import argparse
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file


class Pictures(torch.utils.data.Dataset):
    """Every image below a folder, through timm's own transform."""

    def __init__(self, root, transform):
        self.paths = sorted(p for p in Path(root).rglob("*") if p.is_file())
        self.transform = transform

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        return self.transform(Image.open(self.paths[i]).convert("RGB"))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("images")
    parser.add_argument("output")
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    timm.layers.set_fused_attn(False)
    model = timm.create_model(options.model).eval()
    model.load_state_dict(load_file(options.checkpoint))
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model.pretrained_cfg))
    taps = []
    for block in model.blocks:
        block.attn.attn_drop.register_forward_hook(lambda _m, _i, out: taps.append(out))
    loader = torch.utils.data.DataLoader(
        Pictures(options.images, transform), batch_size=options.batch, num_workers=options.workers
    )
    out = Path(options.output)
    out.mkdir(parents=True)
    with torch.inference_mode():
        for number, batch in enumerate(loader):
            taps.clear()
            logits = model(batch)
            attention = torch.stack(taps, dim=1).to(torch.float16).numpy()
            np.save(out / f"{number:06d}_attention.npy", attention)
            np.save(out / f"{number:06d}_logits.npy", logits.numpy())


if __name__ == "__main__":
    main()
