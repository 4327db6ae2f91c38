import ModditCore
import Testing

struct PlacementTests {
    @Test func countsByTypeAndDevice() {
        var placement = Placement(package: "Model.mlpackage", function: "main")
        for name in ["ios18.linear", "linear", "ios17.linear"] { placement.count(name, on: "GPU") }
        placement.count("linear", on: nil)
        placement.count("ios18.const", on: nil)
        placement.count("const", on: "CPU")
        placement.count("", on: nil)
        #expect(placement.operations == ["linear": ["GPU": 3, "unknown": 1], "": ["unknown": 1]])
    }
}
