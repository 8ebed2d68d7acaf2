use super::*;

#[test]
fn an_unknown_name_is_refused_and_the_plain_one_always_there() {
    assert!(available().contains(&TileIsa::Plain));
    assert!(!TileIsa::Plain.is_fast());
    if !available().contains(&TileIsa::Amx) {
        assert!(set(TileIsa::Amx).is_err());
    }
}
