"Hands what settings.ini, README.md and lossbook/__init__.py hold to setuptools; the rest is in pyproject.toml"
import re
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

def settings(path='settings.ini'):
    "The keyword arguments of `setup` that settings.ini supplies, each key of it read by name once"
    cfg = ConfigParser(delimiters=['='])
    cfg.read(path, encoding='utf-8')
    cfg = dict(cfg['DEFAULT'])
    classifiers = [f'Development Status :: {cfg.pop("status")}', f'Topic :: {cfg.pop("topic")}']
    classifiers += [f'Intended Audience :: {o.strip()}' for o in cfg.pop('audience').split(',')]
    res = dict(keywords=cfg.pop('keywords').split(), classifiers=classifiers,
        install_requires=cfg.pop('requirements').split())
    extras = {k: cfg.pop(k).split() for k in list(cfg) if k.endswith('_requirements')}
    res['extras_require'] = {k.removesuffix('_requirements'): v for k,v in extras.items()}
    if cfg: raise ValueError(f'settings.ini has keys that setup.py does not read: {sorted(cfg)}')
    return res

if __name__ == '__main__':
    version = re.search(r"__version__ = ['\"](.+)['\"]", Path('lossbook/__init__.py').read_text())[1]
    setup(version=version, long_description=Path('README.md').read_text(encoding='utf-8'),
        long_description_content_type='text/markdown', **settings())
