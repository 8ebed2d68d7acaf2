//! The folders of each crate depend on one another one way.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use xtask::{folders, root};

#[test]
fn no_folder_uses_one_above_it() {
    assert_eq!(folders::problems(root()).unwrap(), Vec::<String>::new());
}

#[test]
fn paths_of_every_form_are_found() {
    let text = "use crate::ops::thin;\n\
        use crate::{Result, inplace::{self, copy}, params};\n\
        // crate::comment::x\n\
        fn f() { crate::tensor::g(); $crate::macros::h() }\n\
        use super::super::quant::Q;\n\
        use super::near;\n\
        #[cfg(test)]\nmod tests {\n    use crate::testing::Case;\n}\n";
    let found = folders::used(text, 2);
    assert_eq!(found, ["Result", "inplace", "ops", "params", "quant", "tensor"]);
    assert_eq!(folders::used(text, 1)[1..3], ["inplace", "near"]);
}
