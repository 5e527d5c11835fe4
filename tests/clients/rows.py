"""Works with the sandbox through simple-salesforce, unmodified. Arguments: the URL, a user name and a password."""

import sys

from simple_salesforce import Salesforce, SalesforceLogin
from simple_salesforce.exceptions import (
    SalesforceAuthenticationFailed,
    SalesforceExpiredSession,
    SalesforceMalformedRequest,
    SalesforceResourceNotFound,
)

url, username, password = sys.argv[1:4]


def refused(error, action):
    try:
        action()
    except error as refusal:
        return refusal
    raise AssertionError(f"{error.__name__} was expected")


# Logging in by SOAP, and being turned away.
session_id, host = SalesforceLogin(username=username, password=password, security_token="", scratch_url=url)
assert session_id.startswith("00D"), session_id
refused(
    SalesforceAuthenticationFailed,
    lambda: SalesforceLogin(username=username, password="wrong", security_token="", scratch_url=url),
)
refused(
    SalesforceExpiredSession,
    lambda: Salesforce(instance_url=url, session_id="00D!nobody").query("SELECT Id FROM Account"),
)
sf = Salesforce(instance_url=url, session_id=session_id)

# Rows.
created = sf.Account.create({"Name": "Acme", "Industry": "Energy", "External_ID__c": "ext 1"})
assert created["success"] is True and len(created["id"]) == 18, created
account = created["id"]
assert sf.Account.get(account)["Name"] == "Acme"
assert sf.Account.update(account, {"Name": "Acme 2"}) == 204
assert sf.Account.upsert("External_ID__c/two", {"Name": "Two"}) == 201
assert sf.Account.upsert("External_ID__c/two", {"Name": "Two!"}) == 200
assert sf.Account.get_by_custom_id("External_ID__c", "two")["Name"] == "Two!"
refusal = refused(SalesforceMalformedRequest, lambda: sf.Account.create({"Phone": "1"}))
assert refusal.content[0]["errorCode"] == "REQUIRED_FIELD_MISSING", refusal.content
refused(SalesforceResourceNotFound, lambda: sf.Account.get("001000000000001AAA"))
assert sf.Account.delete(sf.Account.get_by_custom_id("External_ID__c", "two")["Id"]) == 204

# Describe.
fields = {field["name"]: field for field in sf.Account.describe()["fields"]}
assert fields["External_ID__c"]["externalId"] and fields["BillingCity"]["compoundFieldName"] == "BillingAddress"
assert sf.Account.metadata()["objectDescribe"]["name"] == "Account"
assert any(entry["name"] == "Contact" for entry in sf.describe()["sobjects"])

# Queries, with more than one page.
records = [{"attributes": {"type": "Contact"}, "LastName": f"Person {n}", "AccountId": account} for n in range(200)]
for _ in range(11):
    answers = sf.restful("composite/sobjects", method="POST", json={"allOrNone": True, "records": records})
    assert all(answer["success"] for answer in answers), answers
everyone = sf.query_all("SELECT Id, LastName, Account.Name FROM Contact ORDER BY Id")
assert everyone["totalSize"] == 2200 and len(everyone["records"]) == 2200 and everyone["done"]
assert everyone["records"][0]["Account"]["Name"] == "Acme 2"
assert len({record["Id"] for record in everyone["records"]}) == 2200
assert sum(1 for _ in sf.query_all_iter("SELECT Id FROM Contact")) == 2200
assert sf.query("SELECT COUNT() FROM Contact")["totalSize"] == 2200
deleted = sf.query_all("SELECT Id FROM Account WHERE IsDeleted = true", include_deleted=True)
assert deleted["totalSize"] == 1, deleted
refusal = refused(SalesforceMalformedRequest, lambda: sf.query("SELECT Id FROM Account WHERE"))
assert refusal.content[0]["errorCode"] == "MALFORMED_QUERY", refusal.content

# Bulk jobs.
[outcome] = sf.bulk2.Account.insert(records=[{"Name": f'Bulk "{n}", é', "External_ID__c": f"b{n}"} for n in range(300)], wait=1)
assert outcome["numberRecordsProcessed"] == 300 and outcome["numberRecordsFailed"] == 0, outcome
[outcome] = sf.bulk2.Account.upsert(
    records=[{"External_ID__c": "b1", "Phone": "1"}, {"External_ID__c": "b-new", "Phone": "2"}],
    external_id_field="External_ID__c",
    wait=1,
)
assert outcome["numberRecordsFailed"] == 1, outcome
assert "REQUIRED_FIELD_MISSING" in sf.bulk2.Account.get_failed_records(outcome["job_id"])
pages = list(sf.bulk2.Account.query("SELECT Name, Phone FROM Account WHERE External_ID__c LIKE 'b%' ORDER BY Name"))
assert sum(page.count("Bulk") for page in pages) == 300, pages

# What changed, and limits.
import datetime

now = datetime.datetime.now(datetime.timezone.utc)
span = (now - datetime.timedelta(hours=1), now + datetime.timedelta(minutes=2))
assert account in sf.Account.updated(*span)["ids"]
assert len(sf.Account.deleted(*span)["deletedRecords"]) == 1
assert sf.limits()["DailyApiRequests"]["Remaining"] > 0
assert sf.api_usage["api-usage"].used > 0, sf.api_usage
print("simple-salesforce: all is well")
