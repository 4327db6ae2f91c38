// Port of moddit/tokens.py.

/// Which tokens each block processes at each step: how many, by the plan, and which.
package struct TokenPolicy: Sendable, Hashable {
    /// Which tokens are kept.
    package enum Name: String, Sendable, CaseIterable {
        /// All of them.
        case dense
        /// Those that the block's router scores highest.
        case topk
    }

    /// Which tokens are kept.
    package let name: Name
    /// How many; of a dense model all, in one region.
    package let plan: RoutingPlan

    /// Whether every block has a router.
    var hasRouters: Bool { name == .topk }

    /// Reads the "tokens" object of a manifest strictly.
    ///
    /// - Throws: `ModditError.unsupported` for another policy, `ModditError.valueRange` for a dense one that drops
    ///   tokens, and what `RoutingPlan` throws.
    init(_ field: JSONField) throws(ModditError) {
        let object = try JSONObject(field, ["policy", "plan"])
        name = try choice(object["policy"])
        plan = try RoutingPlan(object["plan"])
        guard name != .dense || plan.keepTenths.allSatisfy({ $0 == [RoutingPlan.denominator] }) else {
            let wanted = "\(RoutingPlan.denominator) tenths of every layer in one region, since the policy is 'dense'"
            throw .valueRange(try object["plan"].message("keeps \(plan.keepTenths)", want: wanted))
        }
    }
}
