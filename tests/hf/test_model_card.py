"""Texts that a model card takes in."""

from __future__ import annotations

from alia_ctx.hf.model_card import _below

REPORT = """# Report

Under it
=
## Part
   ### Blanks before
#
###### Deepest
####### no heading
#hashtag
    # code by its blanks
![picture](a.png)
  <img src='x.png'>
It has ![one](b.png) inside.

```bash
# install it
![x](y)
~~~
```
~~~~ text
# inside
```
~~~
~~~~~
# After
`` `#` `` ` ```
# And
"""
BELOW = """### Report

Under it
=
#### Part
##### Blanks before
###
###### Deepest
####### no heading
#hashtag
    # code by its blanks
It has ![one](b.png) inside.

```bash
# install it
![x](y)
~~~
```
~~~~ text
# inside
```
~~~
~~~~~
### After
`` `#` `` ` ```
### And"""


def test_headings_go_down_and_pictures_away_outside_of_code() -> None:
    assert "\n".join(_below(REPORT)) == BELOW
