"""What the connection string says: nothing in it may change what the service relies on."""

from __future__ import annotations

import gc
import re
import uuid
import warnings
from typing import Any

import pytest
from bson import Binary, ObjectId

from mongo.connection import connected, uri_fault
from tests.client import OTHER, USER, create, list_, read, settled
from tests.fixtures import Start
from tests.proxy import Proxy
from tests.servers import MailServer, Mongod
from tests.streams import listening

OPTIONS = [
    *(f"readConcernLevel={level}" for level in ("local", "available", "majority", "linearizable", "snapshot")),
    *(f"readPreference={mode}" for mode in ("secondary", "secondaryPreferred", "primaryPreferred", "nearest")),
    "readPreference=nearest&readPreferenceTags=dc:ny&maxStalenessSeconds=120",
    "readPreferenceTags=dc:ny",
    "maxStalenessSeconds=120",
    "w=0",
    "w=0&journal=true",
    "w=1&journal=false",
    "w=majority&wtimeoutMS=1",
    "fsync=true",
    "retryWrites=true&retryReads=true",
    "retryWrites=false&retryReads=false",
    "tz_aware=false",
    "uuidRepresentation=standard",
    "uuidRepresentation=javaLegacy",
    "unicode_decode_error_handler=strict",
    "timeoutMS=1",
    "serverSelectionTimeoutMS=1",
    "socketTimeoutMS=30000",
    "maxPoolSize=1",
    "minPoolSize=3&maxIdleTimeMS=100",
    "compressors=zlib",
    "appName=ours",
    "directConnection=true",
    "connect=false",
]


@pytest.mark.parametrize(
    ("any_mongod", "options"),
    [("replica set", options) for options in OPTIONS]
    + [pytest.param("standalone", options, marks=pytest.mark.ci) for options in OPTIONS],
    indirect=["any_mongod"],
)
async def test_the_contract_holds_whatever_the_connection_string_says(
    start: Start, any_mongod: Mongod, mail: MailServer, options: str
) -> None:
    name = f"uri_{ObjectId()}"
    client = await start(db_uri=f"mongodb://{any_mongod.address}/{name}?{options}")
    with any_mongod.client() as direct:
        odd: dict[str, Any] = {"id": "x", "is_new": True, "u": Binary(b"123", 4), "v": Binary(uuid.uuid4().bytes, 3)}
        direct[name].users.insert_one({"_id": ObjectId(OTHER), "notifications": [odd]})
        for n in range(3):
            await create(client, key="new_login", data={"n": n})
            page = await list_(client)
            assert [item["data"]["n"] for item in page["list"]] == list(range(n, -1, -1))
            assert page["new"] == 1
            assert await read(client, page["list"][0]["id"]) == 200
            assert (await list_(client))["new"] == 0
        assert (await list_(client, OTHER))["elements"] == 1
        await settled(direct[name])
        assert len(mail.ids) == 3
        assert (await client.get("/readyz")).status == 200
        if await is_replicated(direct):
            async with listening(client) as events:
                assert (await events.next())["elements"] == 3
                await create(client)
                assert (await events.next())["elements"] == 4
        else:
            assert (await client.get(f"/stream?user_id={USER}")).status == 501
        await client.close()
        direct.drop_database(name)


async def is_replicated(direct: Any) -> bool:
    return "setName" in direct.admin.command("hello")


@pytest.mark.parametrize(
    "uri",
    [
        "mongodb://u:hunter2@x/?directConnection=maybe",
        "mongodb://u:hunter2@x/?datetime_conversion=datetime",
        "mongodb://u:hunter2@x,y/?directConnection=true",
        "mongodb://u:hunter2@x/?authMechanism=NONE",
        "mongodb://u:hunter2@x/?tls=true&tlsInsecure=true&tlsAllowInvalidCertificates=true",
        "mongodb://u:hunter2@x/?tls=false&tlsCAFile=/nowhere",
        "mongodb://u:hunter2@x/?tls=true&tlsCAFile=/nowhere",
        "mongodb://u:hunter2@x/?w=-1",
        "mongodb://u:hun/ter2@x/",
        "mongodb://u:hunter2@x:port/",
        "mongodb+srv://u:hunter2@a.b.example:27017/x",
        "mongodb+srv://u:hunter2@a.b.example,c.b.example/x",
        "mongodb://",
    ],
)
def test_an_impossible_connection_string_is_a_fault(uri: str) -> None:
    fault = uri_fault(uri)
    assert fault
    assert "ter2" not in fault
    assert "nowhere" not in fault


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("mongodb+srv://u:hunter2@a.b.example/x?tlsCAFile=/nowhere", "cannot be read: No such file"),
        ("mongodb+srv://u:hunter2@a.b.example/x?tlsCAFile=/dev/null", "cannot be read: .*NO_CERTIFICATE"),
        ("mongodb://u:hunter2@x/?tlsCertificateKeyFile=/dev/null", "needs tlsCertificateKeyFilePassword"),
        ("mongodb://u:hunter2@x/y?ssl=true&ssl_ca_certs=a.pem&replicaSet=r", "^The option ssl_ca_certs is"),
        ("mongodb://u:hunter2@x/y?readConcernLevel=majority&w=majority&j=true", "^The option j is"),
        ("mongodb://u:hunter2@x/y?maxPoolSize=5&useNewUrlParser=true", "^The option useNewUrlParser is"),
        ("mongodb://u:hunter2@x/y?compressors=snappy", "^The option compressors is"),
        ("mongodb://u:@x/y", "a user name without a password"),
        ("mongodb://u@x/y", "a user name without a password"),
        ("mongodb://:hunter2@x/y", "a password without a user name"),
        ("mongodb://u:hunter2@x/admin", "^admin is MongoDB's own database"),
        ("mongodb://x/local?w=1", "^local is MongoDB's own database"),
        ("mongodb://x/shop.users", "has no dot"),
    ],
)
def test_a_fault_of_the_connection_string_is_named(uri: str, said: str) -> None:
    fault = uri_fault(uri) or ""
    assert re.search(said, fault), fault
    assert "hunter2" not in fault


@pytest.mark.parametrize(
    "uri",
    [
        "mongodb+srv://x.example/db?srvMaxHosts=2&srvServiceName=db&srvAllowedHostsSuffix=example",
        "mongodb+srv://u:p%40@a.b.example/?authSource=admin&retryWrites=true&w=majority&appName=Cluster0",
        "mongodb://CN=me@x/y?authMechanism=MONGODB-X509&tls=true",
        "mongodb://u:hunter2@x,y:27018,[::1]:27019/shop?replicaSet=rs0&authSource=admin&compressors=zlib",
        "mongodb://u:p@a.cluster-b.us-east-1.docdb.amazonaws.com:27017/shop?tls=true&replicaSet=rs0&retryWrites=false",
        "mongodb://a:p@a.mongo.cosmos.azure.com:10255/shop?ssl=true&replicaSet=globaldb&retrywrites=false&appName=@a@",
        "mongodb+srv://u:p@a.mongocluster.cosmos.azure.com/shop?tls=true&authMechanism=SCRAM-SHA-256",
    ],
)
def test_a_good_connection_string_is_accepted_without_dns(uri: str) -> None:
    assert uri_fault(uri) is None


@pytest.mark.ci
async def test_a_client_is_closed_though_ending_its_sessions_hangs(mongod: Mongod) -> None:
    async with Proxy(mongod.port).running() as proxy:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            async with connected(f"mongodb://127.0.0.1:{proxy.port}/?directConnection=true") as connection:
                await connection.shared.command("ping")
                proxy.break_next("endSessions", "swallow")
            del connection
            gc.collect()
    assert proxy.faults == 1
    assert caught == []
