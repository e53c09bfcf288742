"""`codream-secure predict` and `export`: use a model that a run or a site has kept."""

from pathlib import Path

import click

from codream_secure.cli.help import Command
from codream_secure.errors import UserError

_EXAMPLES = """\b
Examples:
  codream-secure predict runs/mine/models/server scan.png
  codream-secure predict codream-local/site-0/model new-images/ --json
"""
_EXPORT_EXAMPLES = """\b
Examples:
  codream-secure export runs/mine/models/client-0 --onnx
  codream-secure export /var/lib/codream/model --torchscript --out model.pt
"""


@click.command(cls=Command, epilog=_EXAMPLES)
@click.argument("model", type=Path)
@click.argument("files", type=Path, nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="print a line of JSON for each image")
def predict(model: Path, files: tuple[Path, ...], *, as_json: bool) -> None:
    """Print what the model in folder MODEL says of FILES: images, folders of them, or .npz files.

    Images are resized to the size of the training. Of an .npz file the array `images` is read,
    or else `x_test`.
    """
    _check(model)
    for path in files:
        if not path.exists():
            raise UserError(f"{path}: there is no such file")
    import msgspec  # noqa: PLC0415

    from codream_secure.api.prediction import predict_files  # noqa: PLC0415 - imports torch
    from codream_secure.models.trained import load_model  # noqa: PLC0415

    for one in predict_files(load_model(model), files):
        if as_json:
            click.echo(msgspec.json.encode(one).decode())
        else:
            place = one.file if one.index is None else f"{one.file}[{one.index}]"
            click.echo(f"{place}  {one.name}  {one.probability:.1%}")


@click.command(cls=Command, epilog=_EXPORT_EXAMPLES)
@click.argument("model", type=Path)
@click.option("--onnx", "kind", flag_value="onnx", help="write ONNX (needs the extra onnx)")
@click.option("--torchscript", "kind", flag_value="torchscript", help="write TorchScript")
@click.option("--out", type=Path, help="the file, a new one  [default: MODEL.onnx or MODEL.pt]")
def export(model: Path, kind: str | None, out: Path | None) -> None:
    """Write the model in folder MODEL as one file for other programs.

    It takes float32 pixels in [0, 1], N x C x H x W, and returns the probability of each class.
    """
    if kind not in ("onnx", "torchscript"):
        raise UserError("say which format: --onnx or --torchscript")
    _check(model)
    from codream_secure.models.export import ENDINGS, export_model  # noqa: PLC0415
    from codream_secure.models.trained import load_model  # noqa: PLC0415

    path = out or model.with_name(model.name + ENDINGS[kind])
    loaded = load_model(model)
    click.echo(export_model(loaded, path, kind))  # type: ignore[arg-type]
    click.echo(f"classes, in order: {', '.join(loaded.class_names)}", err=True)


def _check(model: Path) -> None:
    """Raise UserError before PyTorch is loaded if this is no model's folder."""
    if not (model / "model.json").is_file():
        raise UserError(f"{model}: no model (it has no model.json); name a folder that a run kept")
