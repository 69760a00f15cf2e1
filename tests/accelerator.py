"""A device that does not exist: computed on the CPU, with a log of what would cost a real one.

`register` gives PyTorch a backend of the name 'pretend'. That is for good and for the whole
process, so tests call it in one of their own. Then `x.to('pretend')`,
`torch.zeros(3, device='pretend')` and `torch.autocast('pretend')` work as on a real device, and
`watched()` logs what is done."""
import torch
from contextlib import contextmanager
from functools import partial
from math import prod
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_iter, tree_map_only

NAME,aten = 'pretend',torch.ops.aten
# older versions of PyTorch take no backend in Python
has_backends = hasattr(backend_registration, '_setup_privateuseone_for_python_backend')

class Log:
    "What was done on the device"
    def __init__(self):
        self.ops = [] # (name of a kernel, bytes that it reads and writes)
        self.waits = [] # what makes the CPU wait for the device
        self.doubles = [] # what made float64 of what is none
    @property
    def kernels(self): return len(self.ops)
    @property
    def bytes(self): return sum(n for _,n in self.ops)
    def add(self, op, inputs, outputs):
        if any(o.dtype in WIDE for o in outputs) and not any(o.dtype in WIDE for o in inputs):
            self.doubles.append(str(op))
        if not is_free(op): self.ops.append((str(op),
            sum(map(size, inputs)) + sum(map(size, outputs))))

WIDE = torch.double,torch.complex128
logs = [] # those that listen
def size(t):
    "Bytes of memory; what is expanded is there once"
    return prod(n for n,m in zip(t.shape, t.stride()) if m or not n)*t.element_size()

@contextmanager
def watched():
    "What is done on the device within"
    logs.append(Log())
    try: yield logs[-1]
    finally: logs.pop()

def note(what, *args):
    for o in logs: getattr(o, what).append(*args)

# views by their nature, though their schemas do not say so; memory that nobody has written to
FREE = {aten._unsafe_view.default, aten._reshape_alias.default, aten.lift_fresh.default}
def is_free(op):
    "Does an operation read and write nothing?"
    views = any(r.alias_info is not None and not r.alias_info.is_write for r in op._schema.returns)
    return views or op in FREE or op._schema.name.partition('::')[2] in EMPTY
EMPTY = 'empty','empty_like','empty_strided','new_empty','new_empty_strided','detach_'

# the shape of the result, or a number, depends on values
READS = {'_local_scalar_dense','nonzero','masked_select','equal','unique_dim','_unique2',
    'unique_consecutive','bincount',
    'repeat_interleave','is_nonzero','allclose','histc'}
def wait(op, args):
    "Why the CPU waits for the result of an operation, or None"
    name = op._schema.name.partition('::')[2]
    if name in READS and not (name=='repeat_interleave'
        and op is not aten.repeat_interleave.Tensor): return name
    if name in ('index','index_put','index_put_','_index_put_impl_','_unsafe_index'):
        if any(o.dtype in (torch.bool,torch.uint8) for o in args[1] if o is not None):
            return f'{name} by a mask'

class Pretend(Tensor):
    "A tensor on the device, around one on the CPU"
    @staticmethod
    def __new__(cls, inner):
        kwargs = dict(strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=f'{NAME}:0')
        res = Tensor._make_wrapper_subclass(cls, inner.shape, **kwargs)
        res.held = inner
        return res

    __torch_function__ = torch._C._disabled_torch_function_impl
    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None): return compute(func, *args,
        **(kwargs or {}))
    def __repr__(self): return f'Pretend({self.held})'

def compute(op, *args, **kwargs):
    "An operation on tensors of the device"
    given = [o for o in tree_iter((args,kwargs)) if isinstance(o, Tensor)]
    here = {id(o.held): o for o in given if isinstance(o, Pretend)}
    copies,to = op in (aten._to_copy.default,aten.copy_.default),kwargs.get('device')
    for o in given:
        if not (isinstance(o, Pretend) or copies or o.ndim==0):
            raise RuntimeError(f'{op}: expected all tensors to be on {NAME}:0, '
                f'found one of shape {tuple(o.shape)} on {o.device}')
    written = op is aten.copy_.default and not isinstance(args[0], Pretend)
    leaves = written or to is not None and torch.device(to).type!=NAME
    if leaves: note('waits', 'copy to the CPU')
    if (why := wait(op, args)): note('waits', why)
    if to is not None: kwargs['device'] = 'cpu'
    ins,more = tree_map_only(Pretend, lambda o: o.held, (args,kwargs))
    if 'pin_memory' in more: more.pop('pin_memory')
    res = op(*ins, **more)
    outs = [o for o in tree_iter(res) if isinstance(o, Tensor)]
    for o in logs: o.add(op, given, outs)
    if leaves: return args[0] if op is aten.copy_.default else res
    def wrap(o):
        old = here.get(id(o))
        if old is not None and old.shape!=o.shape:
            raise NotImplementedError(f'{op} changes the shape of a tensor')
        return Pretend(o) if old is None else old
    return tree_map_only(Tensor, wrap, res)

# they make an empty tensor and let it grow
MAKERS = 'arange randint randperm eye linspace logspace'
# what autocast does to operations on CUDA, of those that losses use
LOWER = 'mm addmm bmm baddbmm addbmm mv addmv matmul linear'
FULL = '''acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow
    softplus layer_norm norm cdist cosine_similarity poisson_nll_loss cosine_embedding_loss nll_loss
    nll_loss2d hinge_embedding_loss kl_div l1_loss smooth_l1_loss huber_loss mse_loss
    margin_ranking_loss multilabel_margin_loss soft_margin_loss triplet_margin_loss
    multi_margin_loss binary_cross_entropy_with_logits dist pdist renorm logsumexp prod softmax
    log_softmax cumprod cumsum sum'''

def cast(op, lower):
    "An operation under autocast"
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
    def f(*args, **kwargs):
        dtype = torch.get_autocast_dtype(NAME) if lower else torch.float
        def convert(o):
            fits = o.is_floating_point() and o.dtype!=torch.double and o.device.type==NAME
            return o.to(dtype) if fits else o
        with torch._C._ExcludeDispatchKeyGuard(key): return op(*tree_map_only(Tensor, convert,
            args), **kwargs)
    return f

def overloads(names):
    "The operations behind names, but for those that write into a given tensor or name its axes"
    for packet in (getattr(aten, o) for o in names.split()):
        for op in (getattr(packet, o) for o in packet.overloads()):
            if any(o.alias_info is not None
                for o in op._schema.returns) or 'Dimname' in str(op._schema): continue
            yield f'{op._schema.name}.{op._schema.overload_name}'.rstrip('.'),op

class Backend:
    "What PyTorch asks the module of a device"
    def is_initialized(self): return True
    def is_available(self): return True
    def current_device(self): return 0
    def device_count(self): return 1
    def _is_in_bad_fork(self): return False
    def manual_seed_all(self, seed): pass
    def get_amp_supported_dtype(self): return [torch.bfloat16,torch.half]

def on_cpu_first(f):
    "A maker of tensors from numbers, which PyTorch would build where nothing of it can be caught"
    def made(*args, device=None, **kwargs):
        like = next((o.device for o in args[:1] if isinstance(o, Pretend)), None)
        elsewhere = like is None if device is None else torch.device(device).type!=NAME
        if elsewhere:
            return f(*args, device=device, **kwargs)
        if f is AS_TENSOR and like is not None: return args[0].to(device or like,
            kwargs.get('dtype'))
        if f is NEW_TENSOR: args,kwargs = args[1:],dict(dtype=args[0].dtype) | kwargs
        return TENSOR(*args, **kwargs).to(device or like)
    return made
TENSOR,AS_TENSOR,NEW_TENSOR = torch.tensor,torch.as_tensor,Tensor.new_tensor

kept = [] # a library lives as long as somebody holds it
def register():
    "Give PyTorch the device, for good"
    if kept: return
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
    rest,own = torch.library.Library('_', 'IMPL'),torch.library.Library('aten', 'IMPL')
    rest.fallback(compute, 'PrivateUse1')
    rest.fallback(torch.library.fallthrough_kernel, 'AutocastPrivateUse1')
    for name,op in overloads(MAKERS): own.impl(name, partial(compute, op), 'PrivateUse1')
    for names,lower in ((LOWER,True), (FULL,False)):
        for name,op in overloads(names): own.impl(name, cast(op, lower), 'AutocastPrivateUse1')
    kept.extend((rest,own))
    torch.tensor,torch.as_tensor,Tensor.new_tensor = map(on_cpu_first,
        (TENSOR,AS_TENSOR,NEW_TENSOR))
