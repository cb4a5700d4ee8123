"""The routes about an end user: what is held of them, and their erasure.

HTTP only; user_data.py reads, erasure.py asks for the erasure, a worker does it. They need the
scope `admin`: an application acts for its users, nobody for those of another tenant.
"""

import time
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request

from feedback import erasure
from feedback.edge import ERRORS, OurErrors, enter
from feedback.erasure import Receipt
from feedback.user_data import HeldData, read_page

router = APIRouter(prefix="/v1", tags=["users"], route_class=OurErrors, responses=ERRORS)
User = Annotated[
    str, Path(min_length=1, max_length=256, description="The name given as `user` in requests.")
]


@router.get("/users/{user:path}/data")
async def get_user_data(
    request: Request,
    user: User,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[str, Query(max_length=200)] = "",
) -> HeldData:
    """What is held of an end user, page by page; `next` is the cursor of the page after."""
    door = enter(request, "admin")
    return await read_page(
        door.redis, door.keyring, tenant=door.key.tenant, user=user, cursor=cursor, limit=limit
    )


@router.delete("/users/{user:path}", status_code=202)
async def delete_user(request: Request, user: User) -> Receipt:
    """Erase an end user: from now on nothing old of them comes in, and what there is goes."""
    door = enter(request, "admin")
    erasure_id = await erasure.begin(
        door.redis, door.keyring, tenant=door.key.tenant, user=user, now=time.time()
    )
    return await erasure.receipt(door.redis, erasure_id, tenant=door.key.tenant)


@router.get("/erasures/{erasure_id}")
async def get_erasure(request: Request, erasure_id: str) -> Receipt:
    """How far an erasure is; when all is gone, the signed receipt."""
    door = enter(request, "admin")
    return await erasure.receipt(door.redis, erasure_id, tenant=door.key.tenant)
