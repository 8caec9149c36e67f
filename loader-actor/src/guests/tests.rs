//! What holds for every built-in guest, told without running one.

use super::*;

#[test]
fn every_guest_is_found_by_the_name_it_bears() {
    for name in names() {
        assert_eq!(find(name).unwrap().name, name);
    }
    assert!(find("no such guest").is_none());
}
