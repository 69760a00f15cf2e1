"What each process runs in the tests of the chapter on contrast; it imports little, since every process does it again"
import os, socket, torch, torch.distributed as dist
from functools import partial
from torch import nn, tensor
from lossbook.contrastive import CLIPLoss, InfoNCELoss, NTXentLoss, SigLIPLoss, SupConLoss, gather, info_nce_loss

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

N,D = 8,5
def data():
    torch.manual_seed(1)
    return torch.randn(2, N, 6).double(),torch.arange(N)//2%3,tensor([1.,2.,1.,0.,1.,.5,2.,1.]).double()

def model():
    torch.manual_seed(2)
    return nn.Linear(6, D).double()

MANY = {'infonce': partial(InfoNCELoss, .5), 'infonce, both': partial(InfoNCELoss, .5, symmetric=True), 'clip': CLIPLoss,
    'siglip': SigLIPLoss, 'clip, soft': partial(CLIPLoss, soft_targets=True), 'ntxent': NTXentLoss,
    'ntxent, negatives': partial(NTXentLoss, denominator='negatives'), 'supcon': SupConLoss, 'supcon, views': SupConLoss}
# the same in batches that hold items twice, which processes share
for k in ('infonce','infonce, both','clip','siglip'):
    for how in ('eliminate','attract'): MANY[f'{k}, {how}'] = partial(MANY[k], false_negatives=how)

def one_step(name, processes, part, weighted):
    "Value and gradient of the network and the loss, on a part of the data"
    x,y,w = data()
    net,f = model(),MANY[name](processes=processes).double()
    a,b = (net(o[part]) for o in x)
    kwargs = dict(sample_weight=w[part]) if weighted else {}
    if 'eliminate' in name or 'attract' in name: kwargs['groups'] = y[part]
    if name=='supcon, views': v = f((a,b), **kwargs)
    else: v = f(a, y[part], **kwargs) if name.startswith(('ntxent','supcon')) else f(a, b, **kwargs)
    v.backward()
    return v.detach(),[p.grad for p in (*net.parameters(), *f.parameters())]

def forms(name): return ['global'] if name=='clip, soft' else ['local','global']

def averaged(t):
    "As DistributedDataParallel does"
    dist.all_reduce(t)
    return t/dist.get_world_size()

def without_gradient(x):
    "What all_gather gives: the others' embeddings as constants"
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.detach())
    parts[dist.get_rank()] = x
    return torch.cat(parts)

def refusal(f):
    try: f()
    except ValueError as e: return str(e)

def worker(rank, world, port, out):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    dist.init_process_group('gloo', rank=rank, world_size=world)
    n,res = N//world,{}
    part = slice(rank*n, (rank+1)*n)
    for name in MANY:
        for form in forms(name):
            for weighted in (False,True):
                v,grads = one_step(name, form, part, weighted)
                res[name,form,weighted] = averaged(v),[averaged(g) for g in grads]
    net = model()
    a,b = (without_gradient(net(o[part])) for o in data()[0])
    info_nce_loss(a, b, temperature=.5).backward()
    res['no gradient'] = averaged(net.weight.grad)
    x = torch.arange(2.*n).double().requires_grad_()
    g, = torch.autograd.grad(gather(x).pow(3).sum(), x, create_graph=True)
    res['twice'] = torch.autograd.grad(g.sum(), x)[0]
    res['unequal'] = refusal(lambda: gather(torch.zeros(n+(rank==world-1), 2)))
    res['unequal in a loss'] = refusal(lambda: InfoNCELoss(processes='local')(*torch.zeros(2, n+rank, 3)))
    if rank==0: torch.save(res, out)
    dist.barrier()
    dist.destroy_process_group()
