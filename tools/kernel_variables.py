"""The environment variables that code of a notebook may see: what it needs, and no secrets.

A developer's shell holds tokens and passwords; whatever is not named here stays there.
"""

from collections.abc import Mapping

NAMES = {
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ"),
    *("TMPDIR", "TEMP", "TMP"),
    # Windows
    *("SYSTEMROOT", "WINDIR", "COMSPEC", "PATHEXT", "USERPROFILE", "APPDATA", "LOCALAPPDATA"),
    *("PROGRAMDATA", "HOMEDRIVE", "HOMEPATH", "NUMBER_OF_PROCESSORS"),
    # interpreters, libraries, compilers
    *("VIRTUAL_ENV", "CONDA_PREFIX", "PYENV_ROOT", "IPYTHONDIR", "MPLCONFIGDIR"),
    *("LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_LIBRARY_PATH", "CC", "CXX", "CPATH", "LIBRARY_PATH"),
    # the way to the network
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
}
PREFIXES = (
    *("E2E_", "DASK_", "PYTHON", "LC_", "XDG_"),
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "BLIS_", "VECLIB_", "NUMBA_", "LOKY_"),
    *("CUDA_", "NVIDIA_", "NCCL_", "HIP_", "ROCR_", "HSA_", "PYTORCH_", "TORCH_", "ACCELERATE_"),
)


def kernel_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Those of ``environment`` that a notebook needs; proxies are known in small letters, too.

    Left out on purpose: MPLBACKEND ("Agg" would leave the notebook without figures) and
    MALLOC_TRIM_THRESHOLD_: Dask has its workers return freed memory at once, and a training, which
    allocates the same tensors in every step, would spend a third of its time on page faults.
    """
    return {
        name: value
        for name, value in environment.items()
        if name.upper() in NAMES or name.upper().startswith(PREFIXES)
    }
