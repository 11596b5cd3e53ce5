"""What the review of a stranger's source looks for: names, and what they can do, in plain words."""

from __future__ import annotations


def _words(text: str) -> list[str]:
    return text.split()


HARMLESS_MODULES = frozenset(
    _words(
        """__future__ abc bisect collections contextlib copy dataclasses datetime decimal einops einx enum flash_attn
        fractions functools heapq inspect itertools jaxtyping json lightning logging loguru math mamba_ssm numbers
        numpy operator opt_einsum packaging pprint pydantic pytorch_lightning random re regex
        rotary_embedding_torch safetensors scipy statistics string tabulate textwrap tiktoken time timm tokenizers
        torch torchmetrics tqdm transformers triton types typing typing_extensions unittest warnings
        x_transformers xformers"""
    )
)

_FILES = "reads or writes files"
_NETWORK = "reaches the network"
_PROCESS = "starts programs"
_CODE = "runs or builds code"
_PICKLE = "reading a pickle can run any code"
_HIDE = "turns text into other bytes, which can hide code"

DANGEROUS_MODULES: dict[str, str] = {
    **dict.fromkeys(_words("shutil tempfile glob fileinput pathlib mmap zipfile tarfile sqlite3 io"), _FILES),
    **dict.fromkeys(
        _words(
            """socket urllib requests http httpx aiohttp ftplib smtplib telnetlib paramiko asyncio ssl socketserver
            xmlrpc webbrowser huggingface_hub boto3 wget"""
        ),
        _NETWORK,
    ),
    **dict.fromkeys(_words("subprocess multiprocessing pty concurrent sh pexpect"), _PROCESS),
    **dict.fromkeys(_words("importlib builtins code codeop runpy ast dis pkgutil zipimport site imp"), _CODE),
    **dict.fromkeys(_words("pickle cPickle dill cloudpickle joblib shelve marshal"), _PICKLE),
    **dict.fromkeys(_words("base64 binascii zlib gzip bz2 lzma codecs"), _HIDE),
    **dict.fromkeys(_words("ctypes cffi"), "calls machine code outside Python's rules"),
    "os": "reads or writes files, starts programs, reads the environment",
    "sys": "reaches into the running interpreter",
    "gc": "reaches every object of the running program",
    "signal": "changes how the program ends",
    "threading": "goes on in the background",
    "atexit": "runs code when the program ends",
    "getpass": "reads who you are",
    "platform": "reads what machine this is",
    "psutil": "reads what runs on this machine",
    "pip": "installs packages",
    "setuptools": "installs packages",
}

REACHABLE = frozenset(
    _words(
        """os sys subprocess socket ctypes shutil builtins importlib pickle marshal pathlib tempfile urllib
        multiprocessing threading atexit zipfile tarfile ssl gc runpy cffi psutil webbrowser httpx aiohttp requests
        dill cloudpickle joblib huggingface_hub codeop pty fileinput mmap"""
    )
)
"""Modules that others import: ``torch.os`` is the same os."""

DANGEROUS_PARTS: dict[str, str] = {
    "torch.hub": "downloads code and runs it",
    "torch.utils.cpp_extension": "compiles machine code and loads it",
    "torch.utils.model_zoo": "downloads files",
    "torch.ops.load_library": "loads machine code",
    "torch.classes.load_library": "loads machine code",
    **dict.fromkeys(
        _words(
            """torch.save torch.jit.save torch.export.save torch.onnx.export torch.utils.tensorboard numpy.save
            numpy.savez numpy.savez_compressed json.dump"""
        ),
        "writes files",
    ),
    **dict.fromkeys(_words("torch.jit.load torch.export.load torch.export.pt2_archive"), "runs a program from a file"),
    "torch.package": _CODE,
    "torch._inductor.codecache": "compiles machine code and loads it",
    "torch.multiprocessing": _PROCESS,
    "torch.distributed.rpc": _NETWORK,
    "numpy.load": "reads files",
    **dict.fromkeys(_words("numpy.ctypeslib numpy.f2py numpy.distutils"), "loads machine code"),
    "transformers.dynamic_module_utils": "downloads code and runs it",
    "transformers.pipeline": _NETWORK,
    "tiktoken.load": _NETWORK,
    "tiktoken.get_encoding": "downloads a vocabulary, where it is not there yet",
    "tiktoken.encoding_for_model": "downloads a vocabulary, where it is not there yet",
    "logging.config": "makes objects from names, any code among them",
    "logging.handlers": "writes files, reaches the network",
    "unittest.mock": "puts other objects in the place of those there are",
    "pydantic.ImportString": "imports a module by a name that may be put together",
}

BUILTINS: dict[str, str] = {
    "exec": "runs text as code",
    "eval": "runs text as code",
    "compile": "makes code of text",
    "__import__": "imports a module by a name that may be put together",
    "open": _FILES,
    "input": "waits for the keyboard",
    "breakpoint": "stops in a debugger",
    "vars": "reaches the names behind an object",
    "globals": "reaches all names of the file",
    "locals": "reaches all names of a function",
    "exit": "ends the program",
    "quit": "ends the program",
}

METHODS: dict[str, str] = {
    **dict.fromkeys(_words("write_text write_bytes read_text read_bytes unlink rmdir rmtree makedirs"), _FILES),
    **dict.fromkeys(_words("system popen execv execve spawnl spawnv startfile check_output"), _PROCESS),
    **dict.fromkeys(_words("urlopen urlretrieve download_url_to_file load_state_dict_from_url"), _NETWORK),
    **dict.fromkeys(
        _words("dump savetxt save_file save_pretrained FileHandler export_chrome_trace"),
        "writes files",
    ),
    **dict.fromkeys(_words("loadtxt genfromtxt DataSource"), "reads files, or fetches them from a network"),
    **dict.fromkeys(_words("from_file load_file"), "reads files"),
    **dict.fromkeys(
        _words("init_process_group hf_hub_download snapshot_download push_to_hub SocketHandler"),
        _NETWORK,
    ),
    **dict.fromkeys(_words("dictConfig fileConfig"), "makes objects from names, any code among them"),
    **dict.fromkeys(_words("attrgetter methodcaller"), "reaches attributes by names that may be put together"),
    "getmodule": "reaches a module and all that it imports",
    "get_type_hints": "runs text as code",
    "load_inline": "compiles machine code and loads it",
    "memmap": _FILES,
    "tofile": "writes files",
    "fromfile": "reads files",
    "from_pretrained": "downloads weights, or reads them from a folder",
}

DUNDERS = frozenset(
    _words(
        """__subclasses__ __globals__ __builtins__ __bases__ __base__ __mro__ __code__ __closure__ __getattribute__
        __loader__ __spec__ __reduce__ __reduce_ex__ __import__ __subclasshook__ __func__ __self__ __dict__ f_globals
        f_back f_locals f_builtins f_code gi_frame cr_frame ag_frame tb_frame"""
    )
)

HOOKS: dict[str, str] = {
    "__reduce__": _PICKLE,
    "__reduce_ex__": _PICKLE,
    "__setstate__": _PICKLE,
    "__del__": "runs when the object goes, at a time of its own",
    "__init_subclass__": "runs when a class is defined",
    "__set_name__": "runs when a class is defined",
    "__class_getitem__": "runs when a class is taken with [ ], a base among them",
    "__mro_entries__": "runs when a class is defined",
    "__prepare__": "runs when a class is defined",
    "__instancecheck__": "runs in isinstance()",
    "__subclasscheck__": "runs in issubclass()",
    "__import__": "takes the place of import",
}

HARMLESS_CALLS = frozenset(
    _words(
        """dict list tuple set frozenset int float bool str bytes len range min max sum abs round zip enumerate
        sorted reversed map filter any all divmod pow isinstance issubclass hasattr callable type object super
        property staticmethod classmethod slice print TypeVar ParamSpec NewType NamedTuple namedtuple Enum
        SimpleNamespace dataclass field partial getLogger basicConfig device dtype manual_seed filterwarnings
        simplefilter defaultdict OrderedDict Counter deque sqrt log log2 exp pow floor ceil isclose finfo iinfo
        is_available version_info set_float32_matmul_precision set_printoptions lru_cache cache wraps overload
        total_ordering auto join split format get items keys values lower upper startswith endswith strip parse
        cast jit compile no_grad inference_mode"""
    )
)
"""Last part of a name that may be called while a file is loaded without work worth a remark."""

HARMLESS_DECORATORS = HARMLESS_CALLS | frozenset(
    _words(
        """abstractmethod cached_property setter getter deleter override final runtime_checkable contextmanager
        script script_method ignore unused export autocast custom_fwd custom_bwd dynamo disable allow_in_graph
        checkpoint typechecked jaxtyped once_differentiable singledispatch unique replace_return_docstrings
        add_start_docstrings validator field_validator root_validator model_validator rank_zero_only
        record_function"""
    )
)

BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")
BLANK = frozenset(
    "\u00ad\u115f\u1160\u17b4\u17b5\u3164\uffa0\u2800\u00a0\u2000\u2001\u2002\u2003\u2009\u200a\u202f\u3000"
)
LOOK_ALIKES = frozenset("аеорсухіјѕԁһԛԝкмтвнАВЕКМНОРСТУХІЈЅοΑΒΕΖΗΙΚΜΝΟΡΤΥΧνιօսոցհ")
"""Cyrillic, Greek and Armenian letters that read as Latin ones (Unicode TR 39, confusables)."""
