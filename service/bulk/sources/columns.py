"""Columns of tables: which one holds the images, what shards agree on, and the values in them.

One value may be written in several ways: as a string, a large one, a view, or by its place in a dictionary. They count
as one type here, which is the plain one.
"""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from service.bulk.errors import BulkError
from service.bulk.sources.options import Options
from service.bulk.sources.place import shown

_USUAL = ("image", "img", "image_path", "img_path", "file_path", "filepath", "file_name", "filename", "file", "path",
          "image_url", "img_url", "url")  # fmt: skip
"""Columns of text that hold paths or URLs, in small letters."""


def field_of(name: str, schema: pa.Schema, column: str) -> pa.Field:
    """The table's column. Raises BulkError if it has none of that name, or two."""
    if schema.get_field_index(column) < 0:
        raise BulkError(f"{shown(name)} has no column {column}, or two. It has {_listed(schema)}.")
    return schema.field(column)


def common_schema(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """The first schema, with the plain types that all agree on; of those that do not, the first one's."""
    fields = []
    for field in schemas[0]:
        kind = plain_type(field.type)
        for other in schemas[1:]:
            if other.get_field_index(field.name) >= 0:
                kind = common_type(kind, other.field(field.name).type) or kind
        fields.append((field.name, kind))
    return pa.schema(fields)


def common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The plain type that holds the values of both; None if they differ in more than how they are written.

    A column without values is of any type.
    """
    one, other = plain_type(one), plain_type(other)
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if _is_text(one) and _is_text(other):
        return pa.large_string()
    if _is_binary(one) and _is_binary(other):
        return pa.large_binary()
    if not (pa.types.is_struct(one) and pa.types.is_struct(other)) or _names(one) != _names(other):
        return None
    fields = [(name, common_type(one.field(name).type, other.field(name).type)) for name in _names(one)]
    return None if any(kind is None for _, kind in fields) else pa.struct(fields)


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values."""
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(kind) else kind


def embedded(name: str, schema: pa.Schema, options: Options) -> tuple[str | None, str | None]:
    """The columns of images and of texts: one of the two. schema: of plain types."""
    if options.image and options.text:
        raise BulkError("--image-column and --text-column: a row is an image or a text. Give one of them.")
    if options.text:
        if not _is_text(field_of(name, schema, options.text).type):
            raise BulkError(f"{shown(name)}: column {options.text} is {schema.field(options.text).type}, no text.")
        return None, options.text
    if options.image:
        kind = field_of(name, schema, options.image).type
        if not (_is_bytes(kind) or _is_text(kind) or pa.types.is_fixed_size_binary(kind)):
            raise BulkError(f"{shown(name)}: column {options.image} is {kind}: neither bytes, nor paths or URLs.")
        return options.image, None
    bytes_ = [field.name for field in schema if _is_bytes(field.type)]
    named = [field.name for field in schema if _is_text(field.type) and field.name.lower() in _USUAL]
    digests = [field.name for field in schema if pa.types.is_fixed_size_binary(field.type)]  # as they mostly are
    found = bytes_ or named or digests
    if len(found) != 1:
        what = (
            f"{len(found)} columns of {shown(name)} may hold the images"
            if found
            else f"No column of {shown(name)} looks like images"
        )
        raise BulkError(f"{what}: name one with --image-column, or --text-column. There are {_listed(schema)}.")
    return found[0], None


def plain(column: pa.Array, kind: pa.DataType | None = None) -> pa.Array:
    """The values, as the plain type has them, or another that holds them all."""
    if pa.types.is_dictionary(column.type):
        return plain(column.dictionary_decode(), kind)
    if pa.types.is_run_end_encoded(column.type):
        return plain(pc.run_end_decode(column), kind)
    kind = kind or plain_type(column.type)
    if pa.types.is_null(column.type):
        return pa.nulls(len(column), kind)
    return column if column.type == kind else column.cast(kind)


def carried(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """The values in memory of their own, without the images that were read with them.

    Text that is no UTF-8 has backslashes in place of these bytes: not every format of a result can hold them.
    """
    column = plain(column, kind)
    if _is_text(kind):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            values = plain(column, pa.large_binary()).to_pylist()
            column = pa.array([None if value is None else legible(value) for value in values], kind)
    return pa.concat_arrays([column, column.slice(0, 0)])  # of one array alone it would be no copy


def image_columns(column: pa.Array) -> tuple[pa.Array | None, pa.Array | None]:
    """The bytes of images, and their paths or URLs as bytes; a struct has both."""
    column = plain(column)
    if pa.types.is_struct(column.type):
        return plain(pc.struct_field(column, "bytes"), pa.large_binary()), text_column(pc.struct_field(column, "path"))
    return (None, text_column(column)) if _is_text(column.type) else (column, None)


def text_column(column: pa.Array) -> pa.Array:
    """Text as bytes: it may be no UTF-8."""
    return plain(column, pa.large_binary())


def id_column(column: pa.Array) -> pa.Array:
    """Names: text as bytes, all else as it is."""
    column = plain(column)
    return text_column(column) if _is_text(column.type) else column


def id_in(column: pa.Array, row: int) -> str:
    """The name in an `id_column`; empty if there is none."""
    value = column[row]
    try:
        given = value.as_py()
    except (ValueError, OverflowError):  # a time that Python has no type for
        try:
            given = value.cast(pa.string()).as_py()
        except pa.ArrowInvalid:  # of a zone that nobody knows
            given = value.value
    if given is None:
        return ""
    return legible(given) if isinstance(given, bytes) else str(given)


def legible(text: bytes) -> str:
    """With backslashes where it is no UTF-8."""
    return text.decode("utf-8", "backslashreplace")


def _names(kind: pa.DataType) -> list[str]:
    return [kind.field(index).name for index in range(kind.num_fields)]


def _listed(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema) or "no columns"


def _is_bytes(kind: pa.DataType) -> bool:
    """Of images: bytes, or as the library `datasets` writes them, struct<bytes, path>; one of the two may be null."""
    if not pa.types.is_struct(kind):
        return _is_binary(kind)
    bytes_, path = (_type_in(kind, name) for name in ("bytes", "path"))
    if bytes_ is None or path is None or (pa.types.is_null(bytes_) and pa.types.is_null(path)):
        return False
    return (_is_binary(bytes_) or pa.types.is_null(bytes_)) and (_is_text(path) or pa.types.is_null(path))


def _type_in(struct: pa.DataType, name: str) -> pa.DataType | None:
    return plain_type(struct.field(name).type) if _names(struct).count(name) == 1 else None


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
