// Follows the sandbox's change events through salesforce-pubsub-api-client, unmodified, and works with its records
// through jsforce. Arguments: the URL, a client id and its secret, a user name and a password.
import assert from 'node:assert/strict';
import jsforce from 'jsforce';
import PubSubApiClient from 'salesforce-pubsub-api-client';

const [url, clientId, clientSecret, username, password] = process.argv.slice(2);
const quiet = { debug() {}, info() {}, warn() {}, error: console.error };

// A client that logs in by OAuth and waits for events.
const events = new PubSubApiClient(
    {
        authType: 'oauth-client-credentials',
        loginUrl: url,
        clientId,
        clientSecret,
        pubSubEndpoint: new URL(url).host,
        rejectUnauthorizedSsl: false
    },
    quiet
);
await events.connect();

const received = [];
let wake = () => {};
const failures = [];
function follow(subscription, type, data) {
    if (type === 'event') received.push(data);
    if (type === 'error') failures.push(data);
    wake();
}
async function until(condition, what) {
    const deadline = Date.now() + 15000;
    while (!condition()) {
        assert.deepEqual(failures, [], 'the subscription failed');
        const left = deadline - Date.now();
        assert.ok(left > 0, `waited too long for ${what}`);
        await new Promise((resolve) => {
            wake = resolve;
            setTimeout(resolve, Math.min(left, 100));
        });
    }
}
events.subscribeFromEarliestEvent('/data/ChangeEvents', follow);

// Records, by jsforce with its own login.
const people = new jsforce.Connection({ loginUrl: url });
await people.login(username, password);
assert.equal((await people.identity()).username, username);
const account = await people.sobject('Account').create({ Name: 'Acme', BillingCity: 'Porto' });
assert.ok(account.success);
await until(() => received.some((e) => e.payload.ChangeEventHeader.changeType === 'CREATE'), 'the create');
await people.sobject('Account').update({ Id: account.id, Industry: 'Energy', BillingCity: 'Lyon' });
await until(() => received.some((e) => e.payload.ChangeEventHeader.changeType === 'UPDATE'), 'the update');
const [created, updated] = received;
assert.deepEqual(created.payload.ChangeEventHeader.recordIds, [account.id]);
assert.equal(created.payload.BillingAddress.City, 'Porto');
assert.deepEqual(updated.payload.ChangeEventHeader.changedFields, [
    'Industry',
    'LastModifiedDate',
    'BillingAddress.City'
]);
assert.equal(updated.payload.BillingAddress.City, 'Lyon');

// Many records at once come as many events, beyond the hundred that are asked for at a time.
const records = Array.from({ length: 200 }, (_, n) => ({ LastName: `Person ${n}`, AccountId: account.id }));
const results = await people.sobject('Contact').create(records);
assert.ok(results.every((result) => result.success));
await until(() => received.length >= 202, 'two hundred contacts');
const sequence = received.slice(2, 202).map((e) => e.payload.ChangeEventHeader.sequenceNumber);
assert.deepEqual(sequence, Array.from({ length: 200 }, (_, n) => n + 1));

// Resuming after an event that was seen, with another client that brings its own token.
const again = new PubSubApiClient(
    {
        authType: 'user-supplied',
        accessToken: people.accessToken,
        instanceUrl: people.instanceUrl,
        organizationId: people.userInfo.organizationId,
        pubSubEndpoint: new URL(url).host,
        rejectUnauthorizedSsl: false
    },
    quiet
);
await again.connect();
const replayed = [];
const ended = new Promise((resolve, reject) => {
    const callback = (subscription, type, data) => {
        if (type === 'event') replayed.push(data);
        if (type === 'lastEvent') resolve();
        if (type === 'error') reject(data);
    };
    again.subscribeFromReplayId('/data/ContactChangeEvent', callback, 5, received[1].replayId);
});
await ended;
assert.deepEqual(
    replayed.map((e) => e.payload.Name.LastName),
    ['Person 0', 'Person 1', 'Person 2', 'Person 3', 'Person 4']
);

// A subscription to what comes from now on: it is open once an event of it has come.
const live = [];
again.subscribe('/data/AccountChangeEvent', (subscription, type, data) => {
    if (type === 'event') live.push(data);
    if (type === 'error') failures.push(data);
});
for (let n = 0; live.length === 0; n += 1) {
    assert.ok(n < 1000, 'no event has come');
    await people.sobject('Account').update({ Id: account.id, Site: `site ${n}` });
    await new Promise((resolve) => setTimeout(resolve, 10));
}
assert.match(live[0].payload.Site, /^site/);

// The rest of what jsforce does with rows.
const contacts = people.sobject('Contact');
assert.equal(await contacts.count({ AccountId: account.id }), 200);
const found = await people.query("SELECT Id, Name, Account.Name FROM Contact WHERE LastName LIKE 'Person 1%' ORDER BY Id LIMIT 3");
assert.equal(found.records[0].Account.Name, 'Acme');
const upserted = await people.sobject('Account').upsert({ Name: 'Up', External_ID__c: 'u-1' }, 'External_ID__c');
assert.ok(upserted.success);
const several = await people.sobject('Account').upsert(
    [
        { Name: 'Up 2', External_ID__c: 'u-1' },
        { Name: 'Up 3', External_ID__c: 'u-2' }
    ],
    'External_ID__c'
);
assert.ok(several.every((result) => result.success), JSON.stringify(several));
const read = await people.sobject('Account').retrieve([several[0].id, several[1].id]);
assert.deepEqual(read.map((row) => row.Name), ['Up 2', 'Up 3']);
const removed = await people.sobject('Account').destroy([several[0].id, several[1].id]);
assert.ok(removed.every((result) => result.success));
await assert.rejects(people.sobject('Account').create({ Phone: '1' }), { errorCode: 'REQUIRED_FIELD_MISSING' });
assert.ok((await people.sobject('Account').describe()).fields.length > 40);
assert.ok((await people.limits()).DailyApiRequests.Max > 0);
const job = await people.bulk2.loadAndWaitForResults({
    object: 'Account',
    operation: 'insert',
    input: [
        { Name: 'Bulk, "1"', Phone: '1' },
        { Name: '', Phone: '2' }
    ],
    pollInterval: 20
});
assert.equal(job.successfulResults.length, 1);
assert.match(job.failedResults[0].sf__Error, /^REQUIRED_FIELD_MISSING:/);
const rows = await (await people.bulk2.query("SELECT Name FROM Account WHERE Name LIKE 'Bulk%'", { pollInterval: 20 })).toArray();
assert.deepEqual(rows, [{ Name: 'Bulk, "1"' }]);
console.log('salesforce-pubsub-api-client and jsforce: all is well');
events.close();
again.close();
process.exit(0);
