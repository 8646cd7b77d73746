"""Variation of training batches in NumPy: what is drawn, and what is done with it, apart from each other.

A draw depends on a key (of seed, epoch and purpose) and on a row's place in the epoch, not on the rows beside it: any cut
of an epoch into batches and shares gives a row the same variation. The other functions draw nothing.

Legend: N rows, K channels, H height, W width, P pixels (H * W), L tokens, D columns.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601: how bright red, green and blue look
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15  # SplitMix64: its step and the factors of its mixing
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def draw_bits(key: int, places_N: Ints, width: int) -> NDArray[np.uint64]:
    """Return 64 random bits for each place and column, (N, width).

    Place p holds the outputs p * width to (p + 1) * width - 1 of the generator SplitMix64 seeded with ``key``; they are
    computed directly, whatever came before.

    Source:
        Steele, Lea and Flood 2014, doi:10.1145/2714064.2660195, Figure 16 (nextSeed, mix64variant13).
    """
    outputs_NW = places_N[:, None] * width + np.arange(1, width + 1)
    bits = outputs_NW.astype(np.uint64)
    bits *= np.uint64(_GOLDEN_GAMMA)
    bits += np.uint64(key)
    bits ^= bits >> np.uint64(30)
    bits *= _MIX_1
    bits ^= bits >> np.uint64(27)
    bits *= _MIX_2
    bits ^= bits >> np.uint64(31)
    return bits


def draw_uniform(key: int, places_N: Ints, width: int) -> NDArray[np.float64]:
    """Return numbers from 0 (included) to 1 (not), each multiple of 2**-53 equally likely, (N, width)."""
    return (draw_bits(key, places_N, width) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw_normal(key: int, places_N: Ints, width: int) -> Floats:
    """Return numbers of mean 0 and standard deviation 1, at most 5.9 from 0, (N, width); Box and Muller 1958."""
    bits = draw_bits(key, places_N, width)
    radius = ((bits >> np.uint64(40)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-24)  # never 0
    angle = (bits & np.uint64(0xFFFFFF)).astype(np.float32) * np.float32(2 * np.pi * 2.0**-24)
    np.log(radius, out=radius)
    radius *= np.float32(-2)
    np.sqrt(np.maximum(radius, 0, out=radius), out=radius)
    normal: Floats = radius * np.cos(angle)
    return normal


def flip(images_NKHW: Floats, is_flipped_N: Bools, axis: int) -> Floats:
    """Return the images, those that are marked mirrored along an axis: 2 upside down, 3 left to right."""
    flipped = images_NKHW.copy()
    flipped[is_flipped_N] = np.flip(images_NKHW[is_flipped_N], axis)
    return flipped


def crop(images_NKHW: Floats, top_N: Ints, left_N: Ints, padding: int) -> Floats:
    """Return windows of the images' own size, cut from the images in a frame of zeros of ``padding`` pixels.

    ``top_N`` and ``left_N`` are the windows' corners in the framed image, 0 to 2 * padding.
    """
    rows, channels, height, width = images_NKHW.shape
    framed = np.zeros((rows, channels, height + 2 * padding, width + 2 * padding), images_NKHW.dtype)
    framed[:, :, padding : padding + height, padding : padding + width] = images_NKHW
    windows = np.lib.stride_tricks.sliding_window_view(framed, (height, width), axis=(2, 3))
    cropped: Floats = windows[np.arange(rows), :, top_N, left_N]
    return cropped


def cut_out(images_NKHW: Floats, row_N: Ints, column_N: Ints, side: int) -> Floats:
    """Return the images with a square of zeros each, of which pixel (row, column) is the middle.

    The square reaches from ``side // 2`` pixels before the middle on; what lies outside of the image is not there.

    Source:
        DeVries and Taylor 2017, arXiv:1708.04552, section 3.
    """
    height, width = images_NKHW.shape[2:]
    is_row_NH = _is_between(row_N - side // 2, side, height)
    is_column_NW = _is_between(column_N - side // 2, side, width)
    result = images_NKHW.copy()
    np.copyto(result, 0, where=is_row_NH[:, None, :, None] & is_column_NW[:, None, None, :])
    return result


def _is_between(start_N: Ints, length: int, size: int) -> Bools:
    distance_NS = np.arange(size) - start_N[:, None]
    is_between: Bools = (distance_NS >= 0) & (distance_NS < length)
    return is_between


def shift_colours(images_NKHW: Floats, factors_N3: NDArray[np.float64], black_K: Floats, white_K: Floats) -> Floats:
    """Return the images with other brightness, contrast and saturation (factors in this order, 1 changes nothing).

    Brightness multiplies the distance from black, contrast that from the image's mean grey, saturation that from the
    pixel's grey; all three are one linear map, and what leaves the range from black to white is clipped at its end. Grey is
    the luma of three channels, the mean of any other number.
    """
    brightness_N1, contrast_N1, saturation_N1 = factors_N3.T[:, :, None]
    own_N1 = brightness_N1 * contrast_N1 * saturation_N1
    grey_N1 = brightness_N1 * contrast_N1 * (1 - saturation_N1)
    mean_N1 = brightness_N1 * (1 - contrast_N1)
    channels = len(black_K)
    range_K = np.where(white_K > black_K, white_K - black_K, 1)
    luma_K = np.array(_LUMA if channels == len(_LUMA) else [1 / channels] * channels) / range_K
    pixels_NKP = images_NKHW.reshape(len(images_NKHW), channels, -1)
    mean_grey_N1 = (pixels_NKP.mean(2) - black_K) @ luma_K[:, None]
    map_NKK = own_N1[:, :, None] * np.eye(channels) + grey_N1[:, :, None] * np.outer(range_K, luma_K)
    offset_NK = black_K - map_NKK @ black_K + range_K * mean_N1 * mean_grey_N1
    shifted = map_NKK.astype(np.float32) @ pixels_NKP
    shifted += offset_NK.astype(np.float32)[:, :, None]
    np.maximum(shifted, black_K[:, None], out=shifted)
    np.minimum(shifted, white_K[:, None], out=shifted)
    images: Floats = shifted.reshape(images_NKHW.shape)
    return images


def drop_tokens(tokens_NL: Ints, is_dropped_NL: Bools, unknown_id: int, padding_id: int) -> Ints:
    """Return the tokens, those that are marked replaced by the unknown one; padding stays."""
    return np.where(is_dropped_NL & (tokens_NL != padding_id), unknown_id, tokens_NL)


def swap_tokens(tokens_NL: Ints, starts_odd_N: Bools, is_swapped_NM: Bools, padding_id: int) -> Ints:
    """Return the tokens with neighbours swapped; pairs do not overlap, and a pair with padding in it stays.

    Args:
        tokens_NL: Token ids.
        starts_odd_N: Whether a row's pairs are (1, 2), (3, 4), ... and not (0, 1), (2, 3), ...
        is_swapped_NM: Whether to swap each pair; M = L // 2, of which the last is idle where L is even and the row odd.
        padding_id: What only fills a row up.
    """
    first_NM = 2 * np.arange(tokens_NL.shape[1] // 2) + starts_odd_N[:, None]
    second_NM = np.minimum(first_NM + 1, tokens_NL.shape[1] - 1)  # an odd row's last pair: a token with itself
    left_NM = np.take_along_axis(tokens_NL, first_NM, 1)
    right_NM = np.take_along_axis(tokens_NL, second_NM, 1)
    is_moved_NM = is_swapped_NM & (left_NM != padding_id) & (right_NM != padding_id)
    swapped = tokens_NL.copy()
    np.put_along_axis(swapped, first_NM, np.where(is_moved_NM, right_NM, left_NM), 1)
    np.put_along_axis(swapped, second_NM, np.where(is_moved_NM, left_NM, right_NM), 1)
    return swapped


def add_noise(table_ND: Floats, columns: Sequence[int], noise_NC: Floats) -> Floats:
    """Return the table with noise added to some of its columns."""
    noisy = table_ND.copy()
    noisy[:, list(columns)] += noise_NC
    return noisy


def mix(x_N: NDArray[Any], partners_N: NDArray[Any], own_share_N: NDArray[np.float64]) -> Floats:
    """Return each row times its own share plus its partner times the rest.

    Source:
        Zhang et al. 2018, arXiv:1710.09412, equation 1, with a share for each row.
    """
    share_N1 = own_share_N.astype(np.float32)[:, None]
    mixed = x_N.reshape(len(x_N), -1) * share_N1
    mixed += partners_N.reshape(len(x_N), -1) * (1 - share_N1)
    rows: Floats = mixed.reshape(x_N.shape)
    return rows
