"""Sections of the parts of a user's own that concern the data: layout, reader, transforms, augmentations."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Tag, ValidationError, model_validator

from fusionseg.config.outside import PartError, import_part, is_outside
from fusionseg.config.outside_part import OutsidePart, argument_problems, name_to_section, takes
from fusionseg.config.section import Probability
from fusionseg.utils.errors import UserError


class _DictionaryPart(OutsidePart):
    """A part that may be a dictionary transform of MONAI. Its argument `keys` is [image] unless `args` has it."""

    @model_validator(mode="before")
    @classmethod
    def _default_keys(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or not is_outside(raw.get("name")):
            return raw
        args = raw.get("args", {})
        if not isinstance(args, dict) or "keys" in args:
            return raw
        try:
            part = import_part(raw["name"], raw.get("found_in"))
        except PartError:  # reported by the validation of the name
            return raw
        return {**raw, "args": {"keys": ["image"], **args}} if takes(part, "keys") else raw


class _Transform(_DictionaryPart):
    """A deterministic transform of a case, from dictionary to dictionary with the keys image and label.

    A class is instantiated with `args`, and the object is called with the dictionary. A function is called with the
    dictionary and `args`.
    """

    @model_validator(mode="after")
    def _arguments_fit(self) -> _Transform:
        positional = 0 if isinstance(self.part, type) else 1
        if problems := argument_problems(self.part, self.args, positional=positional):
            raise ValueError("\n".join(f"args{problem}" for problem in problems))
        return self


class _Augmentation(_DictionaryPart):
    """A random change of the training samples."""

    prob: Probability = 1.0
    """Probability that a sample is changed."""


class _Layout(OutsidePart):
    """A layout of the user's own: a function from the path of the data set to the content of a datalist."""

    def positional_arguments(self) -> int:
        """1: the path of the data set."""
        return 1


def _layout_section(raw: Any) -> Any:
    """Convert a dotted path to the section of a layout; the name of a built-in layout stays as it is."""
    return name_to_section(raw) if is_outside(raw) else raw


LayoutName = Literal["auto", "msd", "nnunet", "datalist", "folders"]
LayoutPart = Annotated[
    Annotated[
        Annotated[LayoutName, Tag("built-in")] | Annotated[_Layout, Tag("own")],
        Discriminator(lambda raw: "own" if isinstance(raw, dict | OutsidePart) else "built-in"),
    ],
    BeforeValidator(_layout_section),
]
ReaderPart = Annotated[OutsidePart, BeforeValidator(name_to_section)]
TransformPart = Annotated[_Transform, BeforeValidator(name_to_section)]
AugmentationPart = Annotated[_Augmentation, BeforeValidator(name_to_section)]


def named_layout(name: str | None, key: str) -> OutsidePart | str | None:
    """Make the section of a layout that is named on the command line or by a caller of the API.

    Args:
        name: the name of a built-in layout, which is returned as it is, or a dotted path; None for no layout.
        key: the option or argument, for the message.

    Raises:
        UserError: the layout cannot be imported, or is no function of one path.
    """
    return _named(_Layout, name, key) if is_outside(name) else name


def named_reader(name: str | None, key: str) -> OutsidePart | None:
    """Make the section of a reader that is named on the command line or by a caller of the API.

    Args:
        name: its dotted path; None for no reader.
        key: the option or argument, for the message.

    Raises:
        UserError: the reader cannot be imported.
    """
    return None if name is None else _named(OutsidePart, name, key)


def _named(section: type[OutsidePart], name: str | None, key: str) -> OutsidePart:
    assert name is not None
    try:
        import_part(name)
    except PartError as error:
        raise UserError(f"{key}: {error}") from error
    try:
        return section(name=name, args={})
    except ValidationError as error:
        raise UserError(
            [f"{key}: {problem['msg'].removeprefix('Value error, ')}" for problem in error.errors()]
        ) from None
