"""Sends N requests one after the other over one kept-alive connection: `sequential.py URL N`; prints who answered."""

import asyncio
import collections
import json
import sys

import aiohttp


async def main(url: str, count: int) -> None:
    answers: collections.Counter[str] = collections.Counter()
    async with aiohttp.ClientSession(trust_env=True, connector=aiohttp.TCPConnector(limit=1)) as session:
        for _ in range(count):
            async with session.get(url, timeout=aiohttp.ClientTimeout(total=20)) as response:
                await response.read()
                answers[f"{response.status} {response.headers.get('x-isthmus-upstream', '')}"] += 1
    print(json.dumps(answers))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
