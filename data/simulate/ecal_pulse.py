"""The time of a hit: ten samples of its pulse, and what CMS's ratio method makes of them.

Real times are the result of a fit that small pulses often fail. Such a hit gets the time zero where
a flat line describes its samples better, or any time at all where the fit follows the noise. That
depends on the hit's energy and shapes the channel more than the resolution of good hits does, so
the fit is done here too. Compiled by numba; random numbers come from the generator passed in.

Sources: CMS, "Time reconstruction and performance of the CMS electromagnetic calorimeter",
JINST 5 (2010) T03011; CMSSW, public configuration of the simulation and local reconstruction of
the ECAL (pulse template, correlation of the noise, amplitude weights, ratio method).
"""

import math

import numba
import numpy as np

SAMPLES = 10
CLOCK = 25.0  # ns between samples
IN_TIME = 5  # sample at which a pulse in time has its maximum
ADC = 0.0389  # GeV a count
# Samples over the pulse's maximum, which is at the sample IN_TIME.
TEMPLATE = np.array(
    [0.0, 0.0, 0.0, 0.0113979, 0.758151, 1.0, 0.887744, 0.673548, 0.474332, 0.319561]
)
EARLY = 1.2  # ns, how much earlier pulses come; fitted to what networks see of official times
# Correlation of the noise of two samples against their distance in clocks.
NOISE_CORRELATION = np.array(
    [1.0, 0.71073, 0.55721, 0.46089, 0.40449, 0.35931, 0.33924, 0.32439, 0.31581, 0.30481]
)
# A hit's energy is this sum of its samples: it takes the pedestal off and has the least noise.
WEIGHTS = np.array(
    (
        -0.3812788,
        -0.3812788,
        -0.3812788,
        0.0,
        0.235699,
        0.4228363,
        0.3298652,
        0.1575187,
        -0.002082776,
        0.0,
    )
)
# Pulse of the fit: (1 + t / (ALPHA BETA))^ALPHA exp(-t / BETA), t in clocks after the maximum.
ALPHA, BETA = 1.138, 1.652
# Time of the maximum after the earlier one of two neighbouring samples, minus, as a polynomial in
# their ratio within RATIO_LIMITS.
RATIO_FIT = np.array(
    [-2.015452, 3.130702, -12.34730, 41.88921, -82.83944, 91.01147, -50.35761, 11.05621]
)
RATIO_LIMITS = (0.2, 1.4)
SMALL_PULSE, LARGE_PULSE = 5.0, 10.0  # noise widths: below, pulse fit; above, ratios of neighbours
# What is added to the fit's time: (energy in counts, ns), straight lines between.
BIAS = np.array(
    [
        (11.2, -1.641),
        (12.5, -1.537),
        (14.1, -1.301),
        (15.8, -1.121),
        (17.7, -0.943),
        (19.9, -0.795),
        (22.3, -0.679),
        (25.0, -0.59),
        (31.5, -0.465),
        (39.7, -0.381),
        (56.0, -0.293),
        (79.1, -0.235),
        (125.4, -0.188),
        (198.7, -0.136),
        (315.0, -0.097),
        (499.2, -0.039),
        (791.1, -0.028),
        (996.0, 0.025),
        (1406.8, 0.107),
        (1987.2, 0.189),
    ]
)
JITTER = 0.1  # ns, spread of the arrival times of one shower, and of clocks

_COVARIANCE = NOISE_CORRELATION[np.abs(np.subtract.outer(np.arange(SAMPLES), np.arange(SAMPLES)))]
_CHOLESKY = np.linalg.cholesky(_COVARIANCE)
WEIGHTED_NOISE = float(np.sqrt(WEIGHTS @ _COVARIANCE @ WEIGHTS))  # noise of energy / of a sample
# How each sample follows the noise of the energy
_PULL = _COVARIANCE @ WEIGHTS / WEIGHTED_NOISE**2

# The fit's pulse, tabulated from where it begins to where no sample can be.
_STEPS = 64  # a clock
_TABLE_START = -ALPHA * BETA
_AFTER = np.arange(int((SAMPLES + 1 - _TABLE_START) * _STEPS) + 2) / _STEPS  # clocks from the start
_TABLE = (_AFTER / (ALPHA * BETA)) ** ALPHA * np.exp(-(_AFTER + _TABLE_START) / BETA)


@numba.njit(cache=True, nogil=True)
def pulse(t):
    """The fit's pulse ``t`` clocks after its maximum."""
    place = (t - _TABLE_START) * _STEPS
    if place <= 0.0:
        return 0.0
    k = int(place)
    if k >= len(_TABLE) - 1:
        return 0.0
    return _TABLE[k] + (place - k) * (_TABLE[k + 1] - _TABLE[k])


def shifted_template() -> np.ndarray:
    """TEMPLATE for pulses that come EARLY: changed by as much as the fit's pulse changes."""
    after = _TABLE_START + _AFTER
    early, on_time = (
        np.interp(np.arange(SAMPLES) - IN_TIME + shift, after, _TABLE, left=0.0)
        for shift in (EARLY / CLOCK, 0.0)
    )
    return TEMPLATE + early - on_time


PULSE = shifted_template()


@numba.njit(cache=True, nogil=True)
def sample_pulse(rng, signal, fluctuation, noise, samples):
    """Fill ``samples`` (SAMPLES,) with a pulse in time, in rounded ADC counts over the pedestal.

    ``signal`` GeV of pulse and the ``fluctuation`` in GeV that noise added to the measured energy,
    of which ``noise`` is the standard deviation.
    """
    width = noise / WEIGHTED_NOISE
    white = np.empty(SAMPLES)
    for i in range(SAMPLES):
        white[i] = rng.standard_normal()
    weighted = 0.0
    for i in range(SAMPLES):
        value = 0.0
        for k in range(i + 1):
            value += _CHOLESKY[i, k] * white[k]
        samples[i] = width * value
        weighted += WEIGHTS[i] * samples[i]
    for i in range(SAMPLES):
        value = signal * PULSE[i] + samples[i] + _PULL[i] * (fluctuation - weighted)
        samples[i] = math.floor(value / ADC + 0.5)


@numba.njit(cache=True, nogil=True)
def misfit(samples, squares, t_max):
    """(mean square distance of the best pulse at ``t_max`` from the samples, its height)."""
    overlap, norm = 0.0, 0.0
    for i in range(SAMPLES):
        f = pulse(i - t_max)
        overlap += samples[i] * f
        norm += f * f
    if norm <= 0.0:
        return squares / SAMPLES, 0.0
    return (squares - overlap * overlap / norm) / SAMPLES, overlap / norm


@numba.njit(cache=True, nogil=True)
def time_from_ratio(first, step, ratio):
    """Maximum of the fit's pulse whose samples ``first`` and ``first + step`` have this ratio."""
    shape = math.exp((step / BETA - math.log(ratio)) / ALPHA) - 1.0
    return first + ALPHA * BETA - step / shape


@numba.njit(cache=True, nogil=True)
def fit_time(samples, noise):
    """Time of the pulse's maximum in clocks, IN_TIME where no pulse is found.

    ``samples`` (SAMPLES,) in ADC counts over the pedestal, changed in place; ``noise`` in counts.
    The ratios of all pairs of samples each give a time; those whose pulse describes the samples
    about as well as the best one are averaged. Large pulses use neighbouring samples alone.
    """
    pedestal, measured = samples[0], 1
    if abs(samples[1] - samples[0]) < 3.0 * noise:
        pedestal, measured = 0.5 * (samples[0] + samples[1]), 2
    total, squares = 0.0, 0.0
    for i in range(SAMPLES):
        samples[i] -= pedestal
        total += samples[i]
        squares += samples[i] * samples[i]
    flat = (squares - total * total / SAMPLES) / SAMPLES

    pairs = SAMPLES * (SAMPLES - 1) // 2
    times, errors, misfits = np.empty(pairs), np.empty(pairs), np.empty(pairs)
    count = 0
    best = math.inf
    neighbours, neighbours_weight = 0.0, 0.0
    for i in range(SAMPLES - 1):
        for j in range(i + 1, SAMPLES):
            if samples[i] <= 1.0 or samples[j] <= 1.0:
                continue
            ratio = samples[i] / samples[j]
            relative = (noise / samples[i]) ** 2 + (noise / samples[j]) ** 2
            common = noise * (samples[i] - samples[j]) / samples[j] ** 2
            rounding = 0.289 / samples[j]
            error = math.sqrt(
                ratio * ratio * relative + common * common / measured + rounding * rounding
            )
            highest = math.exp((j - i) / BETA) - 0.001
            if error >= 1.0 or not 0.001 < ratio < highest:
                continue
            if j == i + 1 and RATIO_LIMITS[0] <= ratio <= RATIO_LIMITS[1]:
                value, slope = 0.0, 0.0
                for k in range(len(RATIO_FIT) - 1, -1, -1):
                    slope = slope * ratio + value
                    value = value * ratio + RATIO_FIT[k]
                weight = 1.0 / max((error * slope) ** 2, 1e-12)
                neighbours += (i - value) * weight
                neighbours_weight += weight
            early = time_from_ratio(i, j - i, max(ratio - error, 0.001))
            late = time_from_ratio(i, j - i, min(ratio + error, highest))
            t_max, t_error = 0.5 * (early + late), 0.5 * abs(early - late)
            distance, _ = misfit(samples, squares, t_max)
            if distance <= 0.0 or t_error <= 0.0 or t_max <= 0.0:
                continue
            times[count], errors[count], misfits[count] = t_max, t_error, distance
            best = min(best, distance)
            count += 1
    if count == 0:
        return float(IN_TIME)

    mean, mean_weight = 0.0, 0.0
    for k in range(count):
        if misfits[k] < best + noise * noise:
            weight = 1.0 / errors[k] ** 2
            mean += times[k] * weight
            mean_weight += weight
    mean /= mean_weight
    distance, height = misfit(samples, squares, mean)
    if distance > flat:
        return float(IN_TIME)
    size = height / noise
    if size <= SMALL_PULSE or neighbours_weight == 0.0:
        return mean
    neighbours /= neighbours_weight
    share = min((size - SMALL_PULSE) / (LARGE_PULSE - SMALL_PULSE), 1.0)
    return (1.0 - share) * mean + share * neighbours


@numba.njit(cache=True, nogil=True)
def bias(counts):
    """CMSSW's correction of the time in ns for an energy in ADC counts."""
    if counts <= BIAS[0, 0]:
        return BIAS[0, 1]
    for k in range(1, len(BIAS)):
        if counts < BIAS[k, 0]:
            part = (counts - BIAS[k - 1, 0]) / (BIAS[k, 0] - BIAS[k - 1, 0])
            return BIAS[k - 1, 1] + part * (BIAS[k, 1] - BIAS[k - 1, 1])
    return BIAS[-1, 1]


@numba.njit(cache=True, nogil=True)
def hit_time(rng, energy, fluctuation, noise):
    """Measured time in ns of a hit of ``energy`` GeV, of which ``fluctuation`` is noise."""
    samples = np.empty(SAMPLES)
    sample_pulse(rng, energy - fluctuation, fluctuation, noise, samples)
    t_max = fit_time(samples, max(noise / WEIGHTED_NOISE / ADC, 0.1))
    return (t_max - IN_TIME) * CLOCK + bias(energy / ADC) + JITTER * rng.standard_normal()
