#!/usr/bin/env python3
"""Reads a patch by docs/format.md alone and checks it against the checkpoint that it is for.

usage: reader.py PATCH BASE.safetensors

Shares no code with mpatch: it recomputes every touched tensor, takes the result back by the undo log, and compares
all digests. Prints a line per tensor; exits with 1 at the first thing that differs.
"""

import json
import struct
import sys

import numpy
import zstandard
from blake3 import blake3

PATCH_ID_CONTEXT = "mpatch 2026-11 patch id v1"
WEIGHTS_ID_CONTEXT = "mpatch 2026-11 weights id v1"


def check(condition, message):
    if not condition:
        sys.exit(f"error: {message}")


# The manifest's records as docs/format.md lists them: [T] is a count and as many T, ?T an optional T, and a list of
# names is an enum.
RECORDS = {
    "Manifest": "base:Base facts:[Fact] recipe:Recipe measured:[Metric] terms:[Term] bindings:[Binding]"
    " sections:[Section] line:?Line parents:[digest] supersedes:[digest] about:About",
    "Base": "architecture:text config:digest tokenizer:digest",
    "Fact": "id:?text prompt:text subject:text target_new:text target_old:?text note:?text",
    "Recipe": "method:text hyperparameters:text layers:[u32] contexts:[[text]] seed:u64 statistics:digest"
    " facts:digest tool:text device:text",
    "Metric": "name:text before:f64 after:f64 prompts:u64",
    "Term": "rows:u64 columns:u64 bits:u8 integers:Integers row_scales:u32 column_scales:u32",
    "LowRank": "rank:u64 left:u32 right:u32",
    "Dense": "section:u32",
    "Binding": "weights:digest tensors:[Tensor]",
    "Tensor": "name:text dtype:Dtype rows:u64 columns:u64 before:digest after:digest norm_ratio:f64 terms:[u32]"
    " undo:u32 correction:?u32",
    "Section": "kind:Kind codec:Codec stored_size:u64 decoded_size:u64 digest:digest",
    "Line": "name:text sequence:u64",
    "About": "title:?text author:?text licence:?text",
}
ENUMS = {
    "Integers": ["LowRank", "Dense"],
    "Dtype": ["F32", "F16", "BF16"],
    "Kind": ["Integers", "Scales", "Undo", "Correction"],
    "Codec": ["Stored", "Zstd"],
}
NUMBERS = {"u8": "<B", "u16": "<H", "u32": "<I", "u64": "<Q", "f64": "<d"}


class Cursor:
    """Reads values one after the other."""

    def __init__(self, data):
        self.data, self.offset = data, 0

    def take(self, size):
        check(size <= len(self.data) - self.offset, f"{size} bytes at {self.offset} are not there")
        self.offset += size
        return self.data[self.offset - size : self.offset]

    def read(self, kind):
        if kind in NUMBERS:
            return struct.unpack(NUMBERS[kind], self.take(struct.calcsize(NUMBERS[kind])))[0]
        if kind == "digest":
            return self.take(32)
        if kind == "text":
            return self.take(self.read("u64")).decode("utf-8")
        if kind[0] == "[":
            return [self.read(kind[1:-1]) for _ in range(self.read("u64"))]
        if kind[0] == "?":
            tag = self.read("u8")
            check(tag in (0, 1), f"an optional value's tag is {tag}")
            return self.read(kind[1:]) if tag else None
        if kind in ENUMS:
            index = self.read("u32")
            check(index < len(ENUMS[kind]), f"{kind} has no variant {index}")
            variant = ENUMS[kind][index]
            return self.read(variant) if variant in RECORDS else variant
        fields = (field.split(":") for field in RECORDS[kind].split())
        return {name: self.read(kind) for name, kind in fields}


def read_patch(data):
    """The manifest and the decoded sections."""
    c = Cursor(data)
    check(c.take(8) == b"\x89MPATCH\n", "not a patch")
    version = [c.read("u16"), c.read("u16"), c.read("u32")]
    check(version == [1, 0, 0], f"major, minor and flags are {version}")
    check(c.read("u64") == len(data), "the file does not have the size that it states")
    manifest_size, patch_id = c.read("u64"), c.read("digest")
    manifest_bytes = c.take(manifest_size)
    found = blake3(manifest_bytes, derive_key_context=PATCH_ID_CONTEXT).digest()
    check(found == patch_id, "the manifest does not have the patch id that the prelude states")
    m = Cursor(manifest_bytes)
    manifest = m.read("Manifest")
    check(m.offset == manifest_size, "bytes follow the manifest's last field")
    sections = [decode_section(entry, c.take(entry["stored_size"])) for entry in manifest["sections"]]
    for _ in range(c.read("u32")):
        check(c.read("u32") == 1, "a signature of an unknown kind")
        c.take(c.read("u32"))
    check(c.offset == len(data), "bytes follow the signature block")
    print(f"patch {patch_id.hex()}: manifest and {len(sections)} sections have their digests")
    return manifest, sections


def decode_section(entry, stored):
    check(blake3(stored).digest() == entry["digest"], "a section does not have its digest")
    if entry["codec"] == "Zstd":
        check(entry["decoded_size"] <= 2048 * max(len(stored), 1), "a section holds too much for its size")
        decoder = zstandard.ZstdDecompressor(max_window_size=1 << 23).decompressobj()
        stored = decoder.decompress(stored)
        check(decoder.eof and not decoder.unused_data, "a section is not exactly one zstd frame")
    check(len(stored) == entry["decoded_size"], "a section does not have its decoded size")
    return stored


def read_safetensors(path):
    """Per tensor: dtype, shape and bytes."""
    with open(path, "rb") as file:
        data = file.read()
    size = 8 + struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8:size])
    header.pop("__metadata__", None)
    bounds = lambda entry: slice(*(size + offset for offset in entry["data_offsets"]))
    return {name: (entry["dtype"], entry["shape"], data[bounds(entry)]) for name, entry in header.items()}


def weights_id(tensors):
    material = b""
    sized = lambda data: struct.pack("<I", len(data)) + data
    for name in sorted(tensors, key=lambda name: name.encode()):
        dtype, shape, data = tensors[name]
        material += sized(name.encode()) + sized(dtype.encode())
        material += struct.pack(f"<I{len(shape)}Q", len(shape), *shape) + blake3(data).digest()
    return blake3(material, derive_key_context=WEIGHTS_ID_CONTEXT).digest()


def matrix(section, rows, columns, bits):
    planes = numpy.frombuffer(section, numpy.uint8)
    if bits <= 8:
        return planes.view(numpy.int8).reshape(rows, columns).astype(numpy.int64)
    low, high = planes.reshape(2, rows, columns).astype(numpy.int64)
    return low + 256 * numpy.where(high < 128, high, high - 256)


def update_of(term, sections):
    """D: exact integer products, then plain f64 operations."""
    rows, columns, bits, entry = (term[name] for name in ("rows", "columns", "bits", "integers"))
    if "section" in entry:
        product = matrix(sections[entry["section"]], rows, columns, bits)
    else:
        left = matrix(sections[entry["left"]], rows, entry["rank"], bits)
        product = left @ matrix(sections[entry["right"]], entry["rank"], columns, bits)
    row_scales, column_scales = (
        numpy.frombuffer(sections[term[name]], "<f4").astype(numpy.float64)
        for name in ("row_scales", "column_scales"))
    return (row_scales[:, None] * column_scales[None, :]) * product.astype(numpy.float64)


BITS = {"F32": numpy.int32, "F16": numpy.int16, "BF16": numpy.int16}


def ordinals_of(bits):
    """Orders bit patterns as their values: negative values count downwards from -1."""
    magnitude = bits & numpy.iinfo(bits.dtype).max
    return numpy.where(bits < 0, ~magnitude, bits).astype(numpy.int64)


def bits_of(ordinals, dtype):
    kind = BITS[dtype]
    return numpy.where(ordinals < 0, ~ordinals | numpy.iinfo(kind).min, ordinals).astype(kind)


def values_of(ordinals, dtype):
    """The exact value of each ordinal."""
    bits = bits_of(ordinals, dtype)
    if dtype == "BF16":
        return (bits.astype(numpy.int32) << 16).view(numpy.float32).astype(numpy.float64)
    return bits.view({"F32": numpy.float32, "F16": numpy.float16}[dtype]).astype(numpy.float64)


def rounded_to_odd(values):
    """f32 bits, cut off, with the last bit set where anything was lost: safe to round once more."""
    narrow = values.astype(numpy.float32)
    bits = narrow.view(numpy.uint32)
    wide = narrow.astype(numpy.float64)
    bits = bits - (numpy.abs(wide) > numpy.abs(values)).astype(numpy.uint32)
    return bits | (wide != values).astype(numpy.uint32)


def rounded(values, dtype):
    """The ordinal of each value rounded to nearest, ties to even."""
    if dtype == "F32":
        bits = values.astype(numpy.float32).view(numpy.int32)
    elif dtype == "F16":
        bits = rounded_to_odd(values).view(numpy.float32).astype(numpy.float16).view(numpy.int16)
    else:
        odd = rounded_to_odd(values)
        bits = ((odd + (0x7FFF + ((odd >> 16) & 1))) >> 16).astype(numpy.uint16).view(numpy.int16)
    return ordinals_of(bits)


def first_ordinal(dtype, reaches, shape):
    """By bisection, the first finite ordinal for which `reaches` holds, or one past the last."""
    last = int(rounded(numpy.array([numpy.inf]), dtype)[0]) - 1
    low, high = numpy.full(shape, -last - 1), numpy.full(shape, last + 1)
    while (low < high).any():
        middle = (low + high) >> 1
        found = reaches(middle)
        low, high = numpy.where((low < high) & ~found, middle + 1, low), numpy.where(found, middle, high)
    return low


def replay(log, columns, first, count):
    """Ordinals of the weights, from the first ordinal and the number of candidates of each."""
    c, rows = Cursor(log), first.shape[0]
    rows_per_block, blocks = c.read("u32"), c.read("u32")
    check(rows_per_block == max(1, 65536 // columns), "the undo log's blocks have another size")
    check(blocks == -(-rows // rows_per_block), "the undo log has another number of blocks")
    word_counts = [c.read("u32") for _ in range(blocks)]
    result = first.copy()
    for block, word_count in enumerate(word_counts):
        words = iter([c.read("u64") for _ in range(word_count)])
        state, product = 0, 1 << 64
        for row in range(block * rows_per_block, min(rows, (block + 1) * rows_per_block)):
            for column in numpy.flatnonzero(count[row] > 1):
                choices = int(count[row, column])
                if product * choices > 1 << 64:
                    check(state == 0, "a word of the undo log holds more than its choices")
                    state, product = next(words, 0), 1
                state, index = divmod(state, choices)
                result[row, column] += index
                product *= choices
        check(state == 0 and next(words, None) is None, "the undo log holds more than its choices")
    check(c.offset == len(log), "bytes follow the undo log")
    return result


def differences_of(section, rows, columns, dtype):
    """What the correction adds to the ordinal of each weight."""
    width, weights = section[0], rows * columns
    check(width in (1, 2, 4) and width <= numpy.dtype(BITS[dtype]).itemsize, "a correction's width")
    bits, planes = section[1 : 1 + -(-weights // 8)], section[1 + -(-weights // 8) :]
    is_wrong = numpy.unpackbits(numpy.frombuffer(bits, numpy.uint8), bitorder="little")
    check(len(is_wrong) >= weights and not is_wrong[weights:].any(), "a correction's bits")
    count = int(is_wrong.sum())
    check(count > 0 and len(planes) == width * count, "a correction's differences")
    stored = numpy.zeros(count, numpy.int64)
    for plane in range(width):
        stored |= numpy.frombuffer(planes, numpy.uint8)[plane * count :][:count].astype(numpy.int64) << (8 * plane)
    check((stored > 0).all(), "a correction corrects by nothing")
    smallest = next(size for size in (1, 2, 4) if stored.max() < 1 << (8 * size))
    check(smallest == width, "a correction is wider than it needs to be")
    differences = numpy.zeros(weights, numpy.int64)
    differences[is_wrong[:weights] == 1] = numpy.where(stored % 2 == 0, stored // 2, -(stored + 1) // 2)
    return differences.reshape(rows, columns)


def check_tensor(tensor, base, terms, sections):
    dtype, shape, data = base
    rows, columns = tensor["rows"], tensor["columns"]
    shape = shape if len(shape) != 1 else [1, *shape]
    check((dtype, shape) == (tensor["dtype"], [rows, columns]), "another dtype or shape")
    check(blake3(data).digest() == tensor["before"], "the base is not the one the patch is for")
    before = ordinals_of(numpy.frombuffer(data, BITS[dtype]).reshape(shape))
    weights = values_of(before, dtype)
    finite = numpy.isfinite(weights)
    updates = [update_of(terms[index], sections) for index in tensor["terms"]]

    def forward(values):
        for update in updates:
            values = values + update
        return rounded(values, dtype)

    after = numpy.where(finite, forward(weights), before)
    check((numpy.isfinite(values_of(after, dtype)) == finite).all(), "the result overflows")
    corrected = after
    if tensor["correction"] is not None:
        differences = differences_of(sections[tensor["correction"]], rows, columns, dtype)
        corrected = (after + differences).astype(BITS[dtype]).astype(numpy.int64)
    result = blake3(bits_of(corrected, dtype).tobytes()).digest()
    check(result == tensor["after"], "the result is not what the patch promises")
    first = first_ordinal(dtype, lambda ordinals: forward(values_of(ordinals, dtype)) >= after, shape)
    end = first_ordinal(dtype, lambda ordinals: forward(values_of(ordinals, dtype)) > after, shape)
    first, count = numpy.where(finite, first, after), numpy.where(finite, end - first, 1)
    check((count > 0).all(), "a result that no weight becomes")
    undone = replay(sections[tensor["undo"]], columns, first, count)
    restored = blake3(bits_of(undone, dtype).tobytes()).digest()
    check(restored == tensor["before"], "the undo log does not give the base again")
    changed = int((corrected != before).sum())
    print(f"{tensor['name']}: {dtype} {rows} by {columns}, {changed} changed, result and undo exact")


def main():
    check(len(sys.argv) == 3, __doc__.strip().splitlines()[2])
    numpy.seterr(over="ignore", invalid="ignore")
    with open(sys.argv[1], "rb") as file:
        manifest, sections = read_patch(file.read())
    base = read_safetensors(sys.argv[2])
    state = weights_id(base)
    fitting = [binding for binding in manifest["bindings"] if binding["weights"] == state]
    check(fitting, f"no binding for weights {state.hex()}")
    for tensor in fitting[0]["tensors"]:
        check(tensor["name"] in base, f"the base has no {tensor['name']}")
        check_tensor(tensor, base[tensor["name"]], manifest["terms"], sections)


if __name__ == "__main__":
    main()
