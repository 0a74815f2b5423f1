"""Directions for tests of files of vectors."""

import torch

LAYERS, WIDTH = 7, 24
TABLE = torch.randn(3, LAYERS, WIDTH, generator=torch.manual_seed(0))  # (pos, layer, d_model)
ROWS = TABLE[-1]
ZEROS = torch.zeros_like(ROWS[0])
AFTER_FIRST = torch.cat([ZEROS[None], ROWS[1:]])  # as resid_pre has it: nothing at layer 0
BASIS = torch.linalg.qr(TABLE[0].mT)[0].mT[:4]
ALL = tuple(range(LAYERS))


def keyed(form, rows=ROWS):
    return {form.format(i): row for i, row in enumerate(rows)}


def save(folder, held, name="vectors.pt"):
    torch.save(held, folder / name)
    return folder / name
