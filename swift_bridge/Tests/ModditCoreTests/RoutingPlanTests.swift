import Testing

@testable import ModditCore

struct RoutingPlanTests {
    @Test func capacitiesEqualPython() throws {
        for item in try Golden.items("plans.json", "capacities") {
            let numbers = try item.integers
            #expect(try RoutingPlan.capacity(tenths: numbers[0], tokens: numbers[1]) == numbers[2])
        }
    }

    @Test func plansEqualPython() throws {
        let items = try Golden.items("plans.json", "plans")
        #expect(items.count == 4)
        for item in items {
            let plan = try RoutingPlan(item["plan"])
            #expect(try plan.meanKeepRatio == item["mean_keep_ratio"].number())
            let regions = try item["regions"].array().map { try $0.numbers }
            #expect(try regions.map { try plan.region(of: $0[0]) } == regions.map { Int($0[1]) })
            for (tokens, wanted) in zip([64, 720], try item["capacities"].array()) {
                let found = try (0..<plan.regions).map { try plan.capacities(region: $0, tokens: tokens) }
                #expect(try found == wanted.array().map { try $0.integers })
            }
        }
    }

    @Test(arguments: [(0, 1), (11, 1), (5, 0), (5, -1), (10, Int.max), (Int.min, 1)])
    func capacityOutOfRange(tenths: Int, tokens: Int) {
        #expect(throws: ModditError.self) { try RoutingPlan.capacity(tenths: tenths, tokens: tokens) }
    }

    @Test(arguments: [-1, 1000, .nan, .infinity, -.infinity, 1e300])
    func timestepOutOfRange(timestep: Double) throws {
        let plan = try RoutingPlan(plan(regions: 4, "[[1, 2, 3, 4]]"))
        #expect(throws: ModditError.self) { try plan.region(of: timestep) }
    }

    @Test func regionOutOfRange() throws {
        let plan = try RoutingPlan(plan(regions: 2, "[[1, 2]]"))
        #expect(throws: ModditError.valueRange("[routing] region out of range, got 2, want 0..<2")) { try plan.row(2) }
    }

    @Test(arguments: [
        "{}", "[]", "null", #"{"regions": 1, "num_train_timesteps": 1000, "keep_tenths": [[1]], "more": 1}"#,
        #"{"regions": 2, "num_train_timesteps": 1000, "keep_tenths": [[1]]}"#,
        #"{"regions": 1, "num_train_timesteps": 1000, "keep_tenths": []}"#,
        #"{"regions": 0, "num_train_timesteps": 1000, "keep_tenths": [[]]}"#,
        #"{"regions": 1, "num_train_timesteps": 1000, "keep_tenths": [[11]]}"#,
        #"{"regions": 1, "num_train_timesteps": 1000, "keep_tenths": [[1.0]]}"#,
        #"{"regions": 1, "num_train_timesteps": 1000, "keep_tenths": [[true]]}"#,
        #"{"regions": 1, "num_train_timesteps": 9223372036854775807, "keep_tenths": [[1]]}"#,
        #"{"regions": 1, "num_train_timesteps": 0, "keep_tenths": [[1]]}"#,
    ])
    func badPlans(text: String) throws {
        let field = try field(text)
        #expect(throws: ModditError.self) { try RoutingPlan(field) }
    }

    private func plan(regions: Int, _ keepTenths: String) throws -> JSONField {
        try field(#"{"regions": \#(regions), "num_train_timesteps": 1000, "keep_tenths": \#(keepTenths)}"#)
    }

    private func field(_ text: String) throws -> JSONField {
        let value = try JSON.parse(.init(text.utf8), place: "plan", component: "test")
        return JSONField(value, place: "plan", component: "routing")
    }
}
