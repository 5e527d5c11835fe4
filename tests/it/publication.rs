//! Publications that somebody else changes under a link: what is missing from the stream is noticed and read again.
#![allow(clippy::unwrap_used, clippy::panic)]

use serde_json::json;

use super::link::{Link, Setup};

async fn edit(link: &Link, round: u32) {
    for statement in [
        format!("UPDATE salesforce.contact SET phone = '{round}' WHERE external_id__c = 'edited'"),
        format!("DELETE FROM salesforce.contact WHERE external_id__c = 'gone {round}'"),
        format!("INSERT INTO salesforce.contact (lastname, external_id__c) VALUES ('new', 'new {round}')"),
    ] {
        link.sql(&statement).await;
    }
}

async fn is_healed(link: &mut Link, round: u32) {
    link.settle().await;
    assert_eq!(link.record("Contact", "edited").unwrap()["Phone"], json!(round.to_string()));
    assert!(link.record("Contact", &format!("gone {round}")).is_none(), "{round}");
    assert!(link.record("Contact", &format!("new {round}")).is_some(), "{round}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_changed_publication_left_out_is_read_again() {
    let mut link = Link::new(Setup::default()).await;
    for name in ["edited", "gone 1", "gone 2", "gone 3", "gone 4", "gone 5"] {
        link.create("Contact", json!({ "LastName": name, "External_ID__c": name }));
    }
    link.start().await;
    link.settle().await;

    // Under a running link: taken out, and put back as if nothing had been.
    link.sql("ALTER PUBLICATION tidelock_test DROP TABLE salesforce.contact").await;
    edit(&link, 1).await;
    link.sql("ALTER PUBLICATION tidelock_test ADD TABLE salesforce.contact").await;
    is_healed(&mut link, 1).await;
    assert!(link.said_last().contains("somebody has changed what the publication publishes"), "{}", link.said_last());
    let id = link.record("Contact", "edited").unwrap()["Id"].as_str().unwrap().to_owned();
    let history = link.history(&id);
    let compared = |who: &str| who.contains("tidelock reconcile: the publication was changed");
    assert!(history.iter().any(|entry| entry["who"].as_str().is_some_and(compared)), "{history:#?}");

    // And left out: the link puts it back itself.
    link.sql("ALTER PUBLICATION tidelock_test SET (publish = 'insert')").await;
    edit(&link, 2).await;
    is_healed(&mut link, 2).await;

    // While nobody was looking.
    link.kill();
    link.sql("ALTER PUBLICATION tidelock_test DROP TABLE salesforce.contact").await;
    edit(&link, 3).await;
    link.sql("ALTER PUBLICATION tidelock_test ADD TABLE salesforce.contact").await;
    link.start().await;
    is_healed(&mut link, 3).await;
    // Once: what is remembered is how it is now.
    link.kill();
    link.start().await;
    link.settle().await;
    assert!(!link.said_last().contains("somebody"), "{}", link.said_last());

    if link.value("SHOW server_version_num").await.unwrap().parse::<u32>().unwrap() >= 150_000 {
        link.kill();
        link.sql(
            "ALTER PUBLICATION tidelock_test SET TABLE salesforce.account, \
             salesforce.contact (id, lastname, external_id__c) WHERE (id < 0)",
        )
        .await;
        edit(&link, 4).await;
        // The filter is nobody's purpose here, and a mapped column is left out.
        link.spawn();
        assert!(!link.wait_for_exit().await.success());
        assert!(link.said_last().contains("row filter"), "{}", link.said_last());
        link.sql(
            "ALTER PUBLICATION tidelock_test SET TABLE salesforce.account, \
             salesforce.contact (id, lastname, external_id__c)",
        )
        .await;
        link.sql("UPDATE salesforce.contact SET lastname = 'half told' WHERE external_id__c = 'edited'").await;
        link.sql("ALTER PUBLICATION tidelock_test SET TABLE salesforce.account, salesforce.contact").await;
        link.start().await;
        is_healed(&mut link, 4).await;
        assert_eq!(link.record("Contact", "edited").unwrap()["LastName"], "half told");
    }

    // A publication of the same name, which remembers nothing.
    link.kill();
    link.sql(
        "DROP PUBLICATION tidelock_test; \
         CREATE PUBLICATION tidelock_test FOR TABLE salesforce.account, salesforce.contact WITH (publish = 'insert')",
    )
    .await;
    edit(&link, 5).await;
    link.start().await;
    is_healed(&mut link, 5).await;
    link.verify();
}
